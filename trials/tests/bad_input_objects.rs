//! Each kind of object in the repository, damaged in each way: `verify` names it, and no restore
//! yields a started server with other rows than those that were written.

use std::fs;
use std::path::PathBuf;

use lifeboat_testkit::scratch::ScratchServer;
use lifeboat_trials::lab::Ran;
use lifeboat_trials::refusal::{lab, until};
use lifeboat_trials::{Lab, Restored};

/// All rows in one number.
const DIGEST: &str = "SELECT count(*) || ' ' || md5(string_agg(t::text, ',' ORDER BY i)) FROM t";

/// A way to damage an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    FlipFirst,
    FlipMiddle,
    Halve,
    Swap,
    Delete,
}

const ALL: [Damage; 5] =
    [Damage::FlipFirst, Damage::FlipMiddle, Damage::Halve, Damage::Swap, Damage::Delete];

/// An object, another of its kind to be swapped with, and what `verify` may end with.
struct Victim {
    object: String,
    other: Option<String>,
    codes: &'static [i32],
    /// What `verify` ends with when it is deleted.
    deleted: i32,
}

/// An object while it is damaged; whole again afterwards.
struct Damaged {
    path: PathBuf,
    whole: Vec<u8>,
}

impl Damaged {
    /// `None` when there is nothing to swap with.
    fn new(lab: &Lab, victim: &Victim, damage: Damage) -> Option<Self> {
        let path = lab.repository.join(&victim.object);
        let whole = fs::read(&path).expect("the object can be read");
        let mut bytes = whole.clone();
        match damage {
            Damage::FlipFirst => bytes[0] ^= 0x10,
            Damage::FlipMiddle => bytes[whole.len() / 2] ^= 0x10,
            Damage::Halve => bytes.truncate(whole.len() / 2),
            Damage::Swap => {
                let other = lab.repository.join(victim.other.as_ref()?);
                bytes = fs::read(other).expect("the other object can be read");
            }
            Damage::Delete => {}
        }
        assert!(damage == Damage::Delete || bytes != whole, "{damage:?} changed nothing");
        fs::remove_file(&path).expect("the object can be removed");
        if damage != Damage::Delete {
            fs::write(&path, bytes).expect("the object can be written");
            lab.server.account().give(&path).expect("the object can be given away");
        }
        Some(Self { path, whole })
    }

    fn heal(self, lab: &Lab) {
        fs::write(&self.path, &self.whole).expect("the object can be written");
        lab.server.account().give(&self.path).expect("the object can be given away");
    }
}

/// Restores to the end: either it is refused, or the server does not start, or all rows are there.
fn never_wrong(lab: &Lab, what: &str, expected: &str) -> &'static str {
    let directory = lab.place("perhaps");
    let into = directory.display().to_string();
    let ran = lab.run(&["restore", "--into", &into, "--jobs", "2"]);
    let restored = Restored::of(&lab.server, &directory);
    if ran.code != Some(0) {
        assert!(ran.stderr.contains("[LB-"), "{what}: {}", ran.stderr);
        assert!(
            !directory.join("global/pg_control").exists(),
            "{what}: a restore that failed can be started"
        );
        return "refused";
    }
    let _ = fs::remove_file(restored.log());
    if restored.pg_ctl_start().code != Some(0) {
        assert!(
            !restored.log_text().contains("archive recovery complete"),
            "{what}: {}",
            restored.log_text()
        );
        return "not started";
    }
    // It may have opened for reading and stopped since.
    until("recovery ends", || {
        let ended = |words| restored.log_text().contains(words);
        ended("archive recovery complete") || ended("database system is shut down")
    });
    if !restored.log_text().contains("archive recovery complete") {
        return "stopped";
    }
    assert_eq!(restored.value(DIGEST), expected, "{what}: wrong rows");
    "whole"
}

/// The newest object of a kind and the one before it.
fn newest(objects: &[String], within: &str) -> (String, Option<String>) {
    let is_one = |name: &&String| name.contains(within) && !name.ends_with(".partial");
    let mut all: Vec<_> = objects.iter().filter(is_one).cloned().collect();
    let last = all.pop().unwrap_or_else(|| panic!("there is no object in {within}"));
    (last, all.pop())
}

/// One object of each kind that a restore to the end needs, or might trust.
fn victims(lab: &Lab) -> Vec<Victim> {
    let objects = lab.objects();
    let victim = |within: &str, codes: &'static [i32], deleted| {
        let (object, other) = newest(&objects, within);
        Victim { object, other, codes, deleted }
    };
    let findings: &[i32] = &[3];
    // Nothing tells of the end of the WAL that it is not the end: take a segment before it.
    let before_end = |within: &str| {
        let (other, object) = newest(&objects, within);
        let object = object.expect("there are two");
        Victim { object, other: Some(other), codes: findings, deleted: 3 }
    };
    let of_first = newest(&objects, "clusters/main/backups/").1.expect("there are two backups");
    let session = of_first.rsplit('/').next().expect("a name has a last part").to_owned();
    vec![
        victim("clusters/main/data/", findings, 3),
        victim(&format!("clusters/main/data/{session}/"), findings, 3),
        victim("clusters/main/backups/", findings, 3),
        before_end("/00000002/00000002000000"),
        victim("/00000001/00000001000000", findings, 3),
        victim(".history", findings, 3),
        // An event may be missing after a crash: that is noted and is no damage.
        victim("clusters/main/journal/", findings, 0),
        // Without these nothing can be opened: a version, damage, or no key at all.
        victim("keys/recipients", &[1, 13], 1),
        victim("keys/slots/", &[12, 13], 12),
        victim("repository.json", &[1, 13], 10),
    ]
}

#[track_caller]
fn named(ran: &Ran, victim: &Victim, damage: Damage, what: &str) {
    let said = format!("{}{}", ran.stdout, ran.stderr);
    let code = ran.code.unwrap_or(-1);
    if damage == Damage::Delete {
        assert_eq!(code, victim.deleted, "{what}: {said}");
    } else {
        assert!(victim.codes.contains(&code), "{what} ended with {code}: {said}");
    }
    let name = victim.object.rsplit('/').next().expect("a name has a last part");
    match code {
        0 => assert!(said.contains("the journal does not tell of it"), "{what}: {said}"),
        10 => assert!(said.contains("there is no lifeboat repository in "), "{what}: {said}"),
        12 => assert!(said.contains("opens none of the 0 key slots"), "{what}: {said}"),
        _ => assert!(said.contains(name), "{what}: {name} is not named in:\n{said}"),
    }
}

/// Two backups, WAL after them, and a second timeline with rows of its own.
fn history(lab: &Lab) -> String {
    lab.server.execute("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 2000) i");
    lab.backup();
    lab.server.execute("UPDATE t SET md5 = md5(md5) WHERE i % 7 = 0");
    lab.backup();
    lab.server.execute("INSERT INTO t SELECT i, 'one' FROM generate_series(3001, 3100) i");
    lab.archive_all();
    let successor = Restored::start(lab, "successor", &["--take-over"]);
    for i in 0..2 {
        successor.value(&format!("INSERT INTO t VALUES ({}, 'two') RETURNING i", 4000 + i));
        let name = successor.value("SELECT pg_walfile_name(pg_switch_wal())");
        until("the successor archives", || {
            lab.objects().iter().any(|object| object.ends_with(&name))
        });
    }
    let digest = successor.value(DIGEST);
    successor.stop();
    digest
}

#[test]
fn damage_is_named_and_never_restored() {
    let Some(lab) = lab("damage_is_named_and_never_restored", ScratchServer::of(18)) else {
        return;
    };
    let digest = history(&lab);
    lab.run(&["verify"]).ok();
    assert_eq!(never_wrong(&lab, "nothing is damaged", &digest), "whole");
    for victim in victims(&lab) {
        for damage in ALL {
            let what = format!("{damage:?} {}", victim.object);
            let Some(damaged) = Damaged::new(&lab, &victim, damage) else { continue };
            let ran = lab.run(&["verify"]);
            named(&ran, &victim, damage, &what);
            // For a restore, a flip is as good as another, and so is what is cut short.
            if matches!(damage, Damage::FlipMiddle | Damage::Swap | Damage::Delete) {
                let end = never_wrong(&lab, &what, &digest);
                eprintln!("{what}: {end}");
            }
            damaged.heal(&lab);
        }
    }
    lab.run(&["verify"]).ok();
    assert_eq!(never_wrong(&lab, "all is healed", &digest), "whole");
}
