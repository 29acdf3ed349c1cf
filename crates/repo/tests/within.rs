//! A directory of a database and the repository that it is backed up to lie apart.

mod support;

use std::os::unix::fs::symlink;

use lifeboat_repo::RepoError;
use lifeboat_store::LocalStore;

#[test]
fn a_directory_that_holds_the_repository_or_lies_in_it_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let place = |name: &str| home.path().join(name);
    std::fs::create_dir(place("data")).unwrap();
    let store = LocalStore::create(&place("data/repo")).unwrap();
    let cluster = support::main_cluster(&support::create(store, 1));
    symlink(place("data"), place("link")).unwrap();
    symlink(place("data/repo"), place("into")).unwrap();
    for within in [
        "data",
        "data/repo",
        "data/repo/restored",
        "data/repo/clusters/main/wal/7",
        "link",
        "link/repo/new",
        "into",
        "data/new/../repo",
    ] {
        let error = cluster.refuse_within(&place(within));
        assert!(matches!(error, Err(RepoError::Within { .. })), "{within}");
    }
    for apart in ["data/repo2", "data/other", "elsewhere/repo", "link/new"] {
        assert!(cluster.refuse_within(&place(apart)).is_ok(), "{apart}");
    }
}
