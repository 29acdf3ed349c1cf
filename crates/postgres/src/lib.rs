//! lifeboat's postgres.
