//! From a passphrase to the key of a slot. Format: docs/format/keys.md.

use std::thread;

use argon2::{Algorithm, Argon2, Params, Version};
use lifeboat_units::{Entropy, Secret};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::error::RepoError;
use crate::id::{hex, unhex};

/// How the key of a slot comes of its passphrase: Argon2id, with these costs and this salt.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kdf {
    name: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
}

impl Kdf {
    /// RFC 9106 names 64 MiB, 3 passes, 4 lanes for memory-constrained machines.
    pub(crate) fn new(entropy: &dyn Entropy) -> Self {
        let mut salt = [0; 16];
        entropy.fill(&mut salt);
        Self {
            name: "argon2id".to_owned(),
            memory_kib: 64 << 10,
            passes: 3,
            lanes: 4,
            salt: hex(&salt),
        }
    }

    /// Refuses what is out of bounds; gives the costs and the salt.
    pub(crate) fn check(&self, object: &str) -> Result<(Params, Vec<u8>), RepoError> {
        let bounds_hold = self.name == "argon2id"
            && self.memory_kib <= 1 << 20
            && self.passes <= 16
            && self.lanes <= 16;
        if !bounds_hold {
            return Err(RepoError::damaged(object, "its key derivation is out of bounds"));
        }
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32))
            .map_err(|error| RepoError::damaged(object, error.to_string()))?;
        let salt = unhex(&self.salt)
            .ok_or_else(|| RepoError::damaged(object, "its salt is not hexadecimal"))?;
        Ok((params, salt))
    }

    /// The key; `object` is the slot that is named in errors.
    pub(crate) fn derive(
        &self,
        object: &str,
        passphrase: &Secret,
    ) -> Result<Zeroizing<[u8; 32]>, RepoError> {
        let (params, salt) = self.check(object)?;
        let fail = |e: argon2::Error| match e {
            argon2::Error::OutOfMemory => self.short_of(e.to_string()),
            other => RepoError::damaged(object, other.to_string()),
        };
        let mut key = Zeroizing::new([0; 32]);
        let derivation = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        self.on_threads(|| {
            derivation.hash_password_into(passphrase.expose().as_bytes(), &salt, key.as_mut())
        })?
        .map_err(fail)?;
        Ok(key)
    }

    /// Runs a derivation with a thread for each lane, as far as there are processors. The threads
    /// end with it.
    fn on_threads<T: Send>(&self, derive: impl FnOnce() -> T + Send) -> Result<T, RepoError> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(processors.min(self.lanes as usize).max(1))
            .build()
            .map_err(|why| self.short_of(why.to_string()))?;
        Ok(threads.install(derive))
    }

    /// This machine does not give what the derivation needs.
    fn short_of(&self, why: String) -> RepoError {
        RepoError::Derivation { why, memory_kib: self.memory_kib, lanes: self.lanes }
    }
}
