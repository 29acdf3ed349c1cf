//! The points of `check`.

use std::path::Path;

use lifeboat_engine::{ClusterIdentity, Origin, SegmentName, SegmentNo, TimelineId};
use lifeboat_jobs::facts::BackupFacts;
use lifeboat_jobs::inventory::Inventory;
use lifeboat_jobs::wal::Gap;
use lifeboat_jobs::wal::list::gaps;
use lifeboat_jobs::{succession, wal};
use lifeboat_postgres::live::backup::PostgresOrigin;
use lifeboat_postgres::live::conninfo::Wanted;
use lifeboat_postgres::live::privileges::grants;
use lifeboat_postgres::live::remote::MAJOR_MIN;
use lifeboat_postgres::live::server::ServerFacts;
use lifeboat_postgres::live::session::Session;
use lifeboat_postgres::live::slots::Slot;
use lifeboat_repo::repository::identify;
use lifeboat_repo::{BackupId, Keyring, RepoError, keys};
use lifeboat_units::{ByteCount, Clock};

use super::check::Point;
use super::{check_archiving, check_receiving, check_remote, check_settings};
use crate::app::{Access, App, Opened};
use crate::error::CliError;
use crate::origin::{self, Place};
use crate::secrets;
use crate::ui::{between, seconds};

/// A file system with less free space than this is as good as full.
const SPACE_BYTES_MIN: u64 = 1 << 30;
/// Clocks that differ by more make times of the two hosts misleading, in seconds.
const SKEW_MAX: f64 = 5.0;

/// Looks at everything; what depends on a point that failed is left out.
pub(crate) fn all(app: &App) -> Vec<Point> {
    let mut points = Vec::new();
    let opened = app.open(Access::Write);
    points.push(match &opened {
        Ok(opened) => {
            let cluster = opened.cluster.name();
            Point::good(
                "repository",
                format!("{}, cluster {cluster}", opened.cluster.store().location()),
            )
        }
        Err(_) => return vec![Point::error("repository", opened.err().expect("it is one"))],
    });
    let Ok(opened) = opened else { return points };
    points.push(space("repository space", Path::new(&opened.cluster.store().location())));
    points.push(key_slots(app, &opened).unwrap_or_else(|e| Point::error("key slots", e)));
    match server(app, &opened, &mut points) {
        Ok(()) => {}
        Err(error) => points.push(Point::error("server", error)),
    }
    points.push(newest_backup(app, &opened).unwrap_or_else(|e| Point::error("newest backup", e)));
    points.extend(gap(&opened).unwrap_or_else(|e| Some(Point::error("WAL", e))));
    points
}

/// Whether the key slots are whole and, where a passphrase is at hand without asking for it, whether
/// it opens one: without that nothing can be restored.
fn key_slots(app: &App, opened: &Opened) -> Result<Point, CliError> {
    const NAME: &str = "key slots";
    let store = opened.cluster.store();
    let damaged = keys::damaged_slots(store)?;
    let damaged: Vec<&str> = damaged.iter().map(|(slot, _)| slot.as_str()).collect();
    if let Some(first) = damaged.first() {
        return Ok(Point::failed(
            NAME,
            format!("damaged, or of a newer version: {}", damaged.join(", ")),
            format!("put a copy of the object back, or: lifeboat key remove {first}"),
        ));
    }
    let passphrase = match secrets::at_hand(app.settings()?) {
        Ok(passphrase) => passphrase,
        // Perhaps on purpose: a host that backs up need not have it.
        Err(error) => {
            let help = "as the user who restores, `lifeboat key unlock` tells whether it opens one";
            return Ok(Point::note(NAME, error.to_string(), help));
        }
    };
    if let Some(passphrase) = passphrase {
        match Keyring::unlock(store, identify(store)?, Some(&passphrase)) {
            Ok(_) => {}
            Err(error @ RepoError::WrongPassphrase { .. }) => {
                return Ok(Point::failed(
                    NAME,
                    error.to_string(),
                    "no restore is possible with it: `lifeboat key add` gives it a slot, with a \
                     passphrase that opens one",
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Point::good(NAME, keys::slots(store)?.join(", ")))
}

fn server(app: &App, opened: &Opened, points: &mut Vec<Point>) -> Result<(), CliError> {
    let conninfo = app.conninfo()?;
    let mut session = Session::open(&conninfo)?;
    let facts = ServerFacts::read(&mut session)?;
    let slot = check_receiving::slot(app, &facts, &mut session)?;
    let seen = Seen {
        facts: &facts,
        received: slot.as_ref().is_some_and(Slot::is_alive),
        // What is wrong with the newest backup is said at its own point.
        damaged: matches!(newest(opened), Ok(Some((_, newest))) if !newest.is_good()),
    };
    points.push(Point::good("connection", format!("as role {}", facts.role)));
    points.extend(overtaken(opened, &facts).unwrap_or_else(|e| Some(Point::error("timeline", e))));
    match origin::place(conninfo, app.origin_options(Wanted::Any)?)? {
        Place::Here(origin) => here(app, opened, (seen, slot.as_ref()), origin, points),
        Place::Far(why) => far(app, opened, (session, seen, slot.as_ref()), &why, points),
    }
}

/// Whether another server began a newer timeline: what this one writes is not the latest then.
fn overtaken(opened: &Opened, facts: &ServerFacts) -> Result<Option<Point>, CliError> {
    let inventory = Inventory::load(&opened.cluster, &opened.engine)?;
    let newest = inventory.newest_timeline(facts.system_id);
    let ours = facts.timeline;
    // A standby follows its primary a moment later.
    let overtakes = |newest: &TimelineId| *newest > ours && !facts.in_recovery;
    Ok(newest.filter(overtakes).map(|newest| {
        Point::failed(
            "timeline",
            format!(
                "the server writes timeline {ours}, and another one archived timeline {newest}: \
                 `lifeboat restore --latest` follows that one, and `wal receive` refuses this server"
            ),
            format!(
                "is this server still the primary? A standby was promoted, or a copy restored with \
                 --take-over. What is written here is reached by: lifeboat restore --timeline {ours}"
            ),
        )
    }))
}

/// What the server says of itself, and whether its WAL is received.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    /// What it says.
    pub facts: &'a ServerFacts,
    /// Whether somebody receives through the slot of the configuration.
    pub received: bool,
    /// Whether the newest backup knows of damage.
    pub damaged: bool,
}

/// A server whose data directory can be read here.
fn here(
    app: &App,
    opened: &Opened,
    (seen, slot): (Seen<'_>, Option<&Slot>),
    mut origin: Box<PostgresOrigin>,
    points: &mut Vec<Point>,
) -> Result<(), CliError> {
    let facts = seen.facts;
    points.push(Point::good("version", format!("PostgreSQL {}", facts.version)));
    points.push(privileges(facts));
    points.push(clock(app, facts));
    points.extend(check_settings::points(app, seen, false)?);
    points.extend(slot.map(|slot| check_receiving::point(opened, facts, slot)));
    if !facts.privileges.suffice_for_backup() {
        return Ok(()); // the rest needs what a backup needs
    }
    if origin.is_standby() {
        points.push(match origin::recovers_only(&opened.engine, origin.data_directory()) {
            true => Point::failed("standby", origin::RECOVERS, "wait until it is promoted"),
            false => standby(facts, origin.primary_trouble()),
        });
    }
    points.push(space("pg_wal space", &origin.data_directory().join("pg_wal")));
    let identity = match origin.identity() {
        Ok(identity) => identity,
        Err(error) => {
            points.push(Point::error("data directory", error));
            return Ok(());
        }
    };
    points.push(match opened.cluster.refuse_within(origin.data_directory()) {
        Ok(()) => {
            let directory = origin.data_directory().display();
            let found = format!("{directory}, system {}", identity.system_id);
            Point::good("data directory", found)
        }
        Err(error) => Point::error("data directory", error),
    });
    points.push(same_system(opened, &identity).unwrap_or_else(|e| Point::error("same system", e)));
    if facts.archives() {
        let archiving = check_archiving::point(app, opened, origin.data_directory());
        points.push(archiving.unwrap_or_else(|e| Point::error("archiving", e)));
    }
    points.push(whole_loop(app, opened, (seen, &identity), origin.as_mut()));
    Ok(())
}

/// A server that sends its files.
fn far(
    app: &App,
    opened: &Opened,
    (mut session, seen, slot): (Session, Seen<'_>, Option<&Slot>),
    why: &str,
    points: &mut Vec<Point>,
) -> Result<(), CliError> {
    let facts = seen.facts;
    let conninfo = app.conninfo()?.only(session.host());
    let wire = app.settings()?.wire_compression;
    points.push(Point::good("data directory", format!("the server sends its files: {why}")));
    points.push(check_remote::version(facts));
    points.extend(check_remote::points(&mut session, facts, &conninfo, wire)?);
    points.push(clock(app, facts));
    points.extend(check_settings::points(app, seen, true)?);
    points.extend(slot.map(|slot| check_receiving::point(opened, facts, slot)));
    drop(session);
    if facts.major() < MAJOR_MIN {
        return Ok(());
    }
    let mut origin = origin::connect_far(app)?;
    if origin.is_standby() {
        points.push(standby(facts, origin.primary_trouble()));
    }
    let identity = origin.identity()?;
    points.push(same_system(opened, &identity).unwrap_or_else(|e| Point::error("same system", e)));
    points.push(whole_loop(app, opened, (seen, &identity), &mut origin));
    Ok(())
}

/// Whether WAL gets from the server into the repository.
fn whole_loop(
    app: &App,
    opened: &Opened,
    (seen, identity): (Seen<'_>, &ClusterIdentity),
    origin: &mut dyn Origin,
) -> Point {
    const NAME: &str = "WAL arrives";
    let Seen { facts, received, .. } = seen;
    if !facts.archives() && !facts.in_recovery && !received {
        let found = "not tried: the server does not archive, and nobody receives its WAL";
        return Point::failed(NAME, found, "see above");
    }
    let cannot = match origin.cannot_switch() {
        Ok(cannot) => cannot,
        Err(error) => return Point::error(NAME, error),
    };
    match cannot {
        None => arrives(app, opened, origin, identity),
        Some(why) => is_there(app, opened, (facts, identity), &why),
    }
    .unwrap_or_else(|error| Point::error(NAME, error))
}

fn privileges(facts: &ServerFacts) -> Point {
    const NAME: &str = "privileges";
    if facts.privileges.superuser {
        return Point::good(NAME, "superuser; less would do, see the set-up guide");
    }
    if facts.privileges.suffice_for_backup() {
        return Point::good(NAME, "the role may take backups");
    }
    let statements = grants(facts.major(), &facts.role);
    Point::failed(NAME, "the role may not take backups", format!("a superuser runs:\n{statements}"))
}

/// A standby needs its primary to finish segments.
fn standby(facts: &ServerFacts, trouble: Option<&str>) -> Point {
    const NAME: &str = "standby";
    let found = format!("it has replayed up to {}, timeline {}", facts.lsn, facts.timeline);
    match trouble {
        None => Point::good(NAME, format!("{found}; its primary can be asked to finish segments")),
        Some(why) => Point::note(
            NAME,
            format!("{found}; its primary cannot be reached: {why}"),
            "a backup waits until the primary finishes its segment; set `postgres.primary`, or \
             archive_timeout on the primary",
        ),
    }
}

fn clock(app: &App, facts: &ServerFacts) -> Point {
    const NAME: &str = "clock";
    let here = app.clock.now();
    let skew = between(facts.time, here).max(between(here, facts.time));
    let found = format!("the server's differs from this host's by {}", seconds(skew));
    if skew > SKEW_MAX {
        Point::failed(NAME, found, "synchronise both (chrony, systemd-timesyncd)")
    } else {
        Point::good(NAME, found)
    }
}

fn space(name: &'static str, path: &Path) -> Point {
    let stat = match rustix::fs::statvfs(path) {
        Ok(stat) => stat,
        Err(error) => {
            return Point::note(name, format!("{}: {error}", path.display()), "cannot be told");
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let percent = (100 * stat.f_bavail).checked_div(stat.f_blocks).unwrap_or(0);
    let found = format!("{} free ({percent} %)", ByteCount(free));
    if free < SPACE_BYTES_MIN {
        Point::failed(
            name,
            found,
            format!("free space in {}, or run `lifeboat expire`", path.display()),
        )
    } else {
        Point::good(name, found)
    }
}

fn same_system(opened: &Opened, identity: &ClusterIdentity) -> Result<Point, CliError> {
    const NAME: &str = "same system";
    let Some(current) = succession::current(&opened.cluster)? else {
        return Ok(Point::good(NAME, "no backup of another one"));
    };
    if current.system != identity.system_id {
        return Ok(Point::failed(
            NAME,
            format!("the cluster is system {}", current.system),
            "after pg_upgrade `lifeboat backup --continue`; another server gets a name of its own",
        ));
    }
    Ok(Point::good(
        NAME,
        match current.continues {
            Some((from, at)) => format!("it continues system {from} since {at}"),
            None => "the newest backup is of this system".to_owned(),
        },
    ))
}

/// The whole loop: a segment is finished, and arrives. From a standby whose primary cannot be
/// reached: the newest that was finished.
fn arrives(
    app: &App,
    opened: &Opened,
    origin: &mut dyn Origin,
    identity: &ClusterIdentity,
) -> Result<Point, CliError> {
    const NAME: &str = "WAL arrives";
    let timeout = app.settings()?.archive_timeout;
    let began = app.clock.monotonic();
    let segment = origin.switch_segment()?.segment;
    if wal::wait_for(&opened.ports(app), identity.system_id, segment, timeout)? {
        let took = (app.clock.monotonic() - began).as_secs_f64();
        return Ok(Point::good(NAME, format!("segment {segment} in {}", seconds(took))));
    }
    let why = origin.archiver_failure(segment)?;
    let why = why.unwrap_or_else(|| "the archiver tells no failure".to_owned());
    Ok(Point::failed(
        NAME,
        format!("segment {segment} did not arrive in {}: {why}", seconds(timeout.as_secs_f64())),
        "the server's log holds what archive_command printed; of `wal receive`, its own output",
    ))
}

/// Where no segment can be finished: whether the newest that was finished has arrived.
fn is_there(
    app: &App,
    opened: &Opened,
    (facts, identity): (&ServerFacts, &ClusterIdentity),
    why: &str,
) -> Result<Point, CliError> {
    const NAME: &str = "WAL arrives";
    let size = identity.log_segment;
    let number = SegmentNo(facts.lsn.segment(size).0.saturating_sub(1));
    let segment = SegmentName::new(facts.timeline, number, size);
    let timeout = app.settings()?.archive_timeout;
    if wal::wait_for(&opened.ports(app), identity.system_id, segment, timeout)? {
        let found = format!("segment {segment}, the newest finished one, is there; {why}");
        return Ok(Point::note(NAME, found, "see privileges: then the next one can be tried"));
    }
    let waited = seconds(timeout.as_secs_f64());
    let found = format!("segment {segment}, the newest finished one, did not arrive in {waited}");
    let help = "SELECT pg_switch_wal() on the server, and look again; its log holds what \
                archive_command printed";
    Ok(Point::failed(NAME, found, help))
}

/// WAL that is missing behind the newest backup: no moment after it can be reached.
fn gap(opened: &Opened) -> Result<Option<Point>, CliError> {
    let inventory = Inventory::load(&opened.cluster, &opened.engine)?;
    let Some(newest) = inventory.newest() else { return Ok(None) };
    let (system, timeline) = (newest.facts.identity.system_id, newest.facts.timeline);
    let Some(timeline) = inventory.timelines.get(&(system, timeline)) else { return Ok(None) };
    let start = newest.facts.start_lsn.segment(timeline.segment_size);
    let behind = |gap: &&Gap| gap.last >= timeline.name(start);
    Ok(gaps(timeline).iter().find(behind).map(|gap| {
        Point::failed(
            "WAL",
            format!(
                "{} to {} ({} segments) are missing after the newest backup: no later moment can be \
                 restored",
                gap.first, gap.last, gap.segments
            ),
            "take a backup now: lifeboat backup; what the server's log says of that time tells why",
        )
    }))
}

fn newest_backup(app: &App, opened: &Opened) -> Result<Point, CliError> {
    const NAME: &str = "newest backup";
    let Some((newest, facts)) = newest(opened)? else {
        return Ok(Point::note(NAME, "none yet", "lifeboat backup"));
    };
    let age = seconds(between(facts.stopped_at, app.clock.now()));
    if facts.damaged_pages > 0 {
        let found = format!("{newest}, {age} old, with {} damaged pages", facts.damaged_pages);
        return Ok(Point::failed(NAME, found, format!("lifeboat show {newest}")));
    }
    if !facts.is_good() {
        let found = format!("{newest}, {age} old, with {} lost pages", facts.lost_pages());
        return Ok(Point::failed(NAME, found, format!("lifeboat show {newest}")));
    }
    Ok(Point::good(NAME, format!("{newest}, {age} old")))
}

fn newest(opened: &Opened) -> Result<Option<(BackupId, BackupFacts)>, CliError> {
    let Some(newest) = opened.cluster.backups()?.pop() else { return Ok(None) };
    Ok(Some((newest, BackupFacts::of(&opened.cluster.manifest(newest)?)?)))
}
