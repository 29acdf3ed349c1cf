//! Several clusters in one repository share nothing but the store: each archives, backs up,
//! expires, verifies and restores beside the others, and damage of one is nobody else's.

use lifeboat_testkit::scratch::{ScratchServer, skip};
use lifeboat_trials::refusal::lab;
use lifeboat_trials::{Lab, Restored};

const SUM: &str = "SELECT count(*) || ' ' || sum(hashtext(t::text)::bigint) FROM t t";

/// Another cluster in the repository of the first, on a server of its own.
fn another(first: &Lab, name: &str, major: u32) -> Option<Lab> {
    let builder = ScratchServer::of(major).setting("archive_mode", "on");
    let server = match builder.setting("archive_command", "/bin/false").start() {
        Ok(server) => server,
        Err(reason) => {
            skip("many_clusters", &reason.to_string());
            return None;
        }
    };
    let mut lab = Lab::without_repository(server);
    lab.repository = first.repository.clone();
    let passphrase = lab.server.home().join("lifeboat/passphrase").display().to_string();
    let url = format!("file://{}", lab.repository.display());
    let conninfo = lab.server.conninfo();
    // A name that is taken by another system is refused; its own is not.
    lab.run(&[
        "init",
        "--name",
        "main",
        "--pg",
        &conninfo,
        "--repo",
        &url,
        "--passphrase-file",
        &passphrase,
    ])
    .refused(2, &["--name NAME"]);
    lab.run(&[
        "init",
        "--name",
        name,
        "--pg",
        &conninfo,
        "--repo",
        &url,
        "--passphrase-file",
        &passphrase,
    ])
    .ok();
    lab.archive();
    Some(lab)
}

fn objects_of(lab: &Lab, name: &str) -> Vec<String> {
    let prefix = format!("clusters/{name}/");
    lab.objects().into_iter().filter(|object| object.starts_with(&prefix)).collect()
}

/// One cluster's life: backups, load, expiry, verification, all while the others live theirs.
fn live(lab: &Lab, name: &str, factor: u32) -> String {
    let server = &lab.server;
    server.execute(&format!(
        "CREATE TABLE t AS SELECT i * {factor} AS i, md5(i::text) m FROM generate_series(1, 20000) i"
    ));
    for round in 0..3 {
        lab.backup();
        server
            .execute(&format!("UPDATE t SET m = md5(m || '{name} {round}') WHERE i % 9 = {round}"));
        lab.archive_all();
        lab.run(&["expire", "--keep-backups", "2"]).ok();
        lab.run(&["verify"]).ok();
    }
    let sum = server.value(SUM);
    let restored = Restored::start(lab, &format!("r-{name}"), &["--latest"]);
    assert_eq!(restored.value(SUM), sum, "{name}");
    restored.check_and_stop();
    sum
}

#[test]
fn clusters_in_one_repository_share_nothing_but_the_store() {
    let test = "clusters_in_one_repository_share_nothing_but_the_store";
    let Some(main) = lab(test, ScratchServer::of(18)) else { return };
    main.backup();
    let (Some(shop), Some(old)) = (another(&main, "shop", 18), another(&main, "old-one", 15))
    else {
        return;
    };
    let labs = [(&main, "main", 1), (&shop, "shop", 3), (&old, "old-one", 7)];
    let sums: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = labs
            .iter()
            .map(|(lab, name, factor)| scope.spawn(|| live(lab, name, *factor)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it lives")).collect()
    });
    assert!(sums[0] != sums[1] && sums[1] != sums[2]);

    let all = main.run(&["list", "--all", "--json"]).ok().json();
    let names: Vec<_> = all["clusters"].as_array().expect("a list").iter().collect();
    let named = |n: usize| names[n]["cluster"].as_str().unwrap_or_default().to_owned();
    assert_eq!([named(0), named(1), named(2)], ["main", "old-one", "shop"], "{all:#}");
    assert!(names.iter().all(|cluster| cluster["backups"] == 2), "{all:#}");
    assert!(main.run(&["list", "--all"]).ok().stdout.contains("old-one"));
    for (lab, name, _) in &labs {
        assert_eq!(lab.run(&["list", "--json"]).ok().json()["cluster"].as_str(), Some(*name));
    }

    // One's damage, one's expiry.
    let victim = objects_of(&shop, "shop").into_iter().find(|object| object.contains("/data/"));
    let victim = main.repository.join(victim.expect("there are packs"));
    let whole = std::fs::read(&victim).expect("it can be read");
    std::fs::write(&victim, &whole[..whole.len() / 2]).expect("it can be written");
    shop.run(&["verify"]).found(&["data/"]);
    main.run(&["verify"]).ok();
    old.run(&["verify"]).ok();
    std::fs::write(&victim, whole).expect("it can be written");
    shop.run(&["verify"]).ok();
    let before = (objects_of(&main, "main"), objects_of(&main, "old-one"));
    shop.run(&["expire", "--keep-backups", "1"]).ok();
    assert_eq!((objects_of(&main, "main"), objects_of(&main, "old-one")), before);
    for ((lab, name, _), sum) in labs.iter().zip(&sums) {
        let restored = Restored::start(lab, &format!("again-{name}"), &["--latest"]);
        assert_eq!(restored.value(SUM), *sum, "{name}");
        restored.stop();
    }
}
