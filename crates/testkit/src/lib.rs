//! lifeboat's testkit.
