//! Two clusters in one repository, at the same time.

use std::time::Duration;

use lifeboat_testkit::scratch::{self, ScratchServer};
use lifeboat_trials::{Lab, Restored};

fn builder() -> lifeboat_testkit::scratch::ScratchBuilder {
    ScratchServer::of(18).setting("autovacuum", "off")
}

#[test]
fn two_clusters_in_one_repository_do_not_disturb_each_other() {
    let test = "two_clusters_in_one_repository_do_not_disturb_each_other";
    let (one, other) = match (Lab::start(builder()), builder().start()) {
        (Ok(one), Ok(other)) => (one, other),
        (one, other) => {
            let reason = one.err().or(other.err().map(|e| e.to_string())).unwrap_or_default();
            return scratch::skip(test, &reason);
        }
    };
    let mut two = Lab::without_repository(other);
    two.repository = one.repository.clone();
    let passphrase = two.place("passphrase").display().to_string();
    let url = format!("file://{}", one.repository.display());
    let conninfo = two.server.conninfo();
    let arguments =
        ["init", "--name", "other", "--pg", &conninfo, "--repo", &url, "--passphrase-file"];
    two.run(&[&arguments[..], &[&passphrase]].concat()).ok();
    two.server.execute("ALTER SYSTEM SET archive_mode = on");
    two.server.restart();
    two.archive();
    for (lab, name) in [(&one, "one"), (&two, "two")] {
        lab.server.execute(&format!(
            "CREATE TABLE who AS SELECT '{name}' AS name, md5(i::text) t FROM generate_series(1, 300000) i"
        ));
    }
    let removed_meanwhile = one.backup();
    one.backup();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..3).for_each(|_| drop(two.backup())));
        scope.spawn(|| {
            one.backup();
            std::thread::sleep(Duration::from_millis(100));
            one.run(&["expire", "--keep-backups", "1"]).ok();
            one.backup();
        });
    });
    let count = |lab: &Lab| {
        let list = lab.run(&["list", "--json"]).ok().json();
        let ids: Vec<_> = list["backups"].as_array().into_iter().flatten().cloned().collect();
        assert!(!ids.iter().any(|b| b["id"] == removed_meanwhile["id"]), "{list}");
        ids.len()
    };
    assert_eq!((count(&one), count(&two)), (2, 3), "each sees its own");
    for (lab, name) in [(&one, "one"), (&two, "two")] {
        lab.run(&["verify"]).ok();
        lab.archive_all();
        let restored = Restored::start(lab, "latest", &["--latest"]);
        assert_eq!(
            restored.query("SELECT name, count(*) FROM who GROUP BY 1"),
            [format!("{name}|300000")]
        );
        restored.check_and_stop();
    }
    // One killed in the middle of a backup keeps nobody of the other cluster waiting.
    let mut child = one.spawn(&["backup"]);
    std::thread::sleep(Duration::from_millis(150));
    two.backup();
    child.kill().expect("it can be killed");
    child.wait().expect("it can be waited for");
    two.backup();
    one.backup();
    one.run(&["verify"]).ok();
    two.run(&["verify"]).ok();
}
