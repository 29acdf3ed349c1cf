//! The point of `check` that is about `wal receive`.

use lifeboat_engine::Lsn;
use lifeboat_jobs::inventory::Inventory;
use lifeboat_postgres::live::server::ServerFacts;
use lifeboat_postgres::live::session::Session;
use lifeboat_postgres::live::slots::{KeptWal, Slot};
use lifeboat_units::ByteCount;

use super::check::Point;
use crate::app::{App, Opened};
use crate::error::CliError;

const NAME: &str = "receiving";
/// A receiver that is further behind is slower than the server, or its repository is.
const BEHIND_MAX: ByteCount = ByteCount(1 << 30);

/// The slot of the configuration, if the server has it.
pub(crate) fn slot(
    app: &App,
    facts: &ServerFacts,
    session: &mut Session,
) -> Result<Option<Slot>, CliError> {
    if facts.in_recovery {
        return Ok(None); // WAL is received from the primary
    }
    Ok(Slot::read(session, &app.settings()?.wal_slot)?)
}

/// Whether somebody receives, how far behind, and what is stored.
pub(crate) fn point(opened: &Opened, facts: &ServerFacts, slot: &Slot) -> Point {
    match stored(opened, facts) {
        Ok(stored) => judge(slot, stored),
        Err(error) => Point::error(NAME, error),
    }
}

/// How far the WAL of the server's timeline is stored.
fn stored(opened: &Opened, facts: &ServerFacts) -> Result<Option<Lsn>, CliError> {
    let inventory = Inventory::load(&opened.cluster, &opened.engine)?;
    let timeline = inventory.timelines.get(&(facts.system_id, facts.timeline));
    Ok(timeline.and_then(lifeboat_jobs::inventory::Timeline::end))
}

fn judge(slot: &Slot, stored: Option<Lsn>) -> Point {
    let name = &slot.name;
    let stored = match stored {
        Some(lsn) => format!("stored up to {lsn}"),
        None => "nothing is stored of this timeline yet".to_owned(),
    };
    let start = "start `lifeboat wal receive`, or its service";
    match (slot.kept, slot.in_use) {
        (KeptWal::Lost, _) => Point::failed(
            NAME,
            format!("slot `{name}` was given up, WAL that it needs was removed; {stored}"),
            "`lifeboat wal receive --create-slot` makes it anew; then `lifeboat backup`: what was \
             removed is a gap. max_slot_wal_keep_size is how much may wait for a receiver",
        ),
        (_, false) => {
            let since = slot.unused_since.map_or(String::new(), |at| format!(" since {at}"));
            let kept = match slot.behind {
                Some(bytes) => format!("{bytes} of WAL wait for it in pg_wal"),
                None => "no WAL is kept for it".to_owned(),
            };
            let drop = format!(
                "{start}; if WAL is no longer to be received: SELECT \
                 pg_drop_replication_slot('{name}')"
            );
            let found = format!("nobody uses slot `{name}`{since}; {kept}, {stored}");
            Point::failed(NAME, found, drop)
        }
        (KeptWal::Threatened, true) => Point::failed(
            NAME,
            format!("slot `{name}` is in use, and too far behind to be kept much longer; {stored}"),
            "its receiver or the repository is too slow, its own output says more; a larger \
             max_slot_wal_keep_size gives it time",
        ),
        (KeptWal::Kept | KeptWal::Nothing, true) => {
            let behind = slot.behind.unwrap_or(ByteCount(0));
            let found = format!("slot `{name}` is in use, {behind} behind; {stored}");
            if behind > BEHIND_MAX {
                let slow = "its receiver or the repository is slower than the server; its own \
                            output says more";
                return Point::note(NAME, found, slow);
            }
            Point::good(NAME, found)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::check::State;

    fn slot(kept: KeptWal, in_use: bool, behind: u64) -> Slot {
        Slot {
            name: "lifeboat".to_owned(),
            in_use,
            unused_since: None,
            kept,
            position: Some(Lsn(0x100_0000)),
            behind: Some(ByteCount(behind)),
        }
    }

    #[test]
    fn a_dead_slot_fails_and_says_what_to_do() {
        let stored = Some(Lsn(0x120_0000));
        let judged = |kept, in_use, behind| judge(&slot(kept, in_use, behind), stored);
        let good = judged(KeptWal::Kept, true, 4096);
        assert_eq!(good.state, State::Good);
        assert_eq!(good.found, "slot `lifeboat` is in use, 4.0 KiB behind; stored up to 0/1200000");
        assert_eq!(judged(KeptWal::Kept, true, 2 << 30).state, State::Note);
        for (kept, in_use, help) in [
            (KeptWal::Kept, false, "pg_drop_replication_slot('lifeboat')"),
            (KeptWal::Nothing, false, "start `lifeboat wal receive`"),
            (KeptWal::Threatened, false, "start `lifeboat wal receive`"),
            (KeptWal::Threatened, true, "max_slot_wal_keep_size"),
            (KeptWal::Lost, false, "--create-slot"),
            (KeptWal::Lost, true, "lifeboat backup"),
        ] {
            let point = judged(kept, in_use, 4096);
            assert_eq!(point.state, State::Failed, "{kept:?}, {in_use}");
            assert!(point.help.as_ref().is_some_and(|h| h.contains(help)), "{point:?}");
        }
    }
}
