//! Data keys: every manifest carries those of all it refers to.

use std::collections::HashMap;

use lifeboat_repo::crypt::SealKey;
use lifeboat_repo::keys::DataKey;
use lifeboat_repo::{BackupId, RepoError};

use super::context::{Context, is_damage};
use super::error::VerifyError;
use super::report::FindingKind;
use crate::inventory::{Backup, chain};

/// The keys of content, by the session that sealed it.
pub(super) type Keys = HashMap<BackupId, SealKey>;

/// Unwraps every data key of these backups; each wrapped text once.
pub(super) fn unwrap(context: &Context<'_>, backups: &[&Backup]) -> Result<Keys, VerifyError> {
    let identity = context.cluster().repository().keyring().identity.as_ref();
    if identity.is_none() {
        return Err(RepoError::WriteOnly.into());
    }
    let mut keys = Keys::new();
    let mut known: HashMap<(BackupId, &str), Option<String>> = HashMap::new();
    for backup in backups {
        context.go_on()?;
        let object = format!("manifest {}", backup.id());
        for (session, text) in &backup.manifest.data_keys {
            let why = match known.get(&(*session, text.as_str())) {
                Some(why) => why.clone(),
                None => {
                    let key = backup
                        .manifest
                        .wrapped_key(*session)
                        .and_then(|wrapped| DataKey::unwrap(&wrapped, identity, &object));
                    let why = match key {
                        Ok(key) => {
                            let scope = context.cluster().backup_scope(*session);
                            keys.entry(*session).or_insert_with(|| key.seal_key(&scope));
                            None
                        }
                        Err(error) if is_damage(&error) => Some(chain(&error)),
                        Err(error) => return Err(error.into()),
                    };
                    known.entry((*session, text)).or_insert(why).clone()
                }
            };
            if let Some(why) = why {
                let what = format!("the data key of {session} does not open: {why}");
                context.findings.add(FindingKind::DataKey, &object, &what, [backup.id()]);
            }
        }
    }
    Ok(keys)
}
