//! The one function of the C library's `libm.so.6` that is called, by progress bars.
//!
//! PostgreSQL starts lifeboat for each WAL file. To load a shared library takes a tenth of the time
//! that such a start takes, so the function is here, and the library is not asked for.

/// `pow(3)`, as the C library has it.
#[expect(unsafe_code, reason = "the linker is to find it by its name")]
#[unsafe(no_mangle)]
extern "C" fn pow(base: f64, exponent: f64) -> f64 {
    libm::pow(base, exponent)
}
