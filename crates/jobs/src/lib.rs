//! lifeboat's jobs.
