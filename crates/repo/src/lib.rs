//! lifeboat's repo.
