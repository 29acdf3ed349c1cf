//! Sealing: AES-256-GCM under keys that are used once per session, bound to what is sealed.
//!
//! Format and reasons: docs/format/sealing.md.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use lifeboat_units::Entropy;
use zeroize::Zeroizing;

use crate::error::RepoError;
use crate::id::{BackupId, ClusterName, RepositoryId};
use crate::page_hash::PageHasher;

/// What sealing adds to the length, in bytes: the tag of AES-GCM.
pub const TAG_BYTES: usize = 16;
/// Random bytes in front of a single object's box, in bytes.
pub const SALT_BYTES: usize = 16;

/// The system's cryptographic random generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, into: &mut [u8]) {
        // The kernel's own. That of aws-lc gathers jitter of the processor first, 30 ms in every
        // process, and a process that needs a handful of keys is over in less.
        // Where the kernel has no random bytes there is nothing safe to go on with.
        getrandom::fill(into).expect("the system's random generator works");
    }
}

/// What a sealed box holds. Part of its nonce and of its bound data, so that no box can stand in
/// for one of another kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum BoxKind {
    /// Pages or bytes of the database, under a data key.
    Extent = 1,
    /// A part of a page map.
    MapPart = 2,
    /// A chunk of a file table.
    TableChunk = 3,
    /// The table of contents at the end of a pack.
    PackTrailer = 4,
    /// A backup's manifest.
    Manifest = 5,
    /// The head of an archived log file.
    LogHead = 6,
    /// An event of the journal.
    Event = 7,
    /// A lease.
    Lease = 8,
    /// The list of recipients.
    Recipients = 9,
    /// Keys in a key slot.
    Slot = 10,
    /// A note of who reads.
    Reading = 11,
}

/// The symmetric key that seals manifests, maps and names. Whoever writes has it.
#[derive(Clone)]
pub struct IndexKey(Zeroizing<[u8; 32]>);

impl IndexKey {
    /// A new key.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        entropy.fill(bytes.as_mut());
        Self(bytes)
    }

    /// A key that was stored.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, to be stored in a slot or a key file.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key for one purpose, derived so that no two purposes share one.
    fn derive(&self, context: &'static str, material: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(self.0.as_ref());
        for part in material {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Zeroizing::new(*hasher.finalize().as_bytes())
    }

    /// The key that seals the index objects of one session.
    pub fn session(&self, scope: &Scope) -> SealKey {
        let key = self.derive(
            "lifeboat 1 index session",
            &[&scope.repository.0, scope.cluster.as_bytes(), scope.session.as_bytes()],
        );
        SealKey::new(&key, scope)
    }

    /// The key of one sealing of a single object. The salt makes it another key each time: an
    /// object may be sealed again under the name that it had before (a push that is repeated, a
    /// lease that two hosts want), and a nonce must not come twice under one key.
    fn single(&self, scope: &Scope, salt: &[u8; SALT_BYTES]) -> SealKey {
        let (cluster, name) = (scope.cluster.as_bytes(), scope.session.as_bytes());
        let key =
            self.derive("lifeboat 1 index object", &[&scope.repository.0, cluster, name, salt]);
        SealKey::new(&key, scope)
    }

    /// Appends a single object's box to `out`: salt, sealed content, tag.
    pub fn seal_single(
        &self,
        scope: &Scope,
        kind: BoxKind,
        plain: &[u8],
        entropy: &dyn Entropy,
        out: &mut Vec<u8>,
    ) {
        let mut salt = [0; SALT_BYTES];
        entropy.fill(&mut salt);
        out.extend_from_slice(&salt);
        let from = out.len();
        out.extend_from_slice(plain);
        self.single(scope, &salt).seal(kind, 0, out, from);
    }

    /// Opens a single object's box in place and gives the plain part of it.
    pub fn open_single<'a>(
        &self,
        scope: &Scope,
        kind: BoxKind,
        object: &str,
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], RepoError> {
        match sealed.split_first_chunk_mut::<SALT_BYTES>() {
            Some((salt, rest)) => self.single(scope, salt).open(kind, 0, object, rest),
            None => Err(RepoError::damaged(object, "it is cut short")),
        }
    }

    /// The key of page hashes and content digests of one cluster.
    pub fn hasher(&self, repository: RepositoryId, cluster: &ClusterName) -> PageHasher {
        let key =
            self.derive("lifeboat 1 page hash", &[&repository.0, cluster.as_str().as_bytes()]);
        PageHasher::new(*key)
    }
}

impl std::fmt::Debug for IndexKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IndexKey[secret]")
    }
}

/// To what a box is bound: its repository, its cluster and the session that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The repository.
    pub repository: RepositoryId,
    /// The cluster; empty for what belongs to the whole repository.
    pub cluster: String,
    /// The backup in whose course it was written, or the name of the single object.
    pub session: String,
}

impl Scope {
    /// What a backup writes.
    pub fn backup(repository: RepositoryId, cluster: &ClusterName, id: BackupId) -> Self {
        Self { repository, cluster: cluster.to_string(), session: id.to_string() }
    }

    /// A single object of a cluster, such as an archived log file or an event.
    pub fn object(repository: RepositoryId, cluster: &ClusterName, name: &str) -> Self {
        Self { repository, cluster: cluster.to_string(), session: name.to_owned() }
    }

    /// A single object of the repository itself.
    pub fn repository(repository: RepositoryId, name: &str) -> Self {
        Self { repository, cluster: String::new(), session: name.to_owned() }
    }
}

/// A key that seals the boxes of one session; each number is used once.
pub struct SealKey {
    aead: LessSafeKey,
    bound: Vec<u8>,
}

impl SealKey {
    /// A key for this scope.
    pub fn new(key: &[u8; 32], scope: &Scope) -> Self {
        let unbound = UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes 32 bytes");
        let mut bound = b"lifeboat1".to_vec();
        bound.extend_from_slice(&scope.repository.0);
        for text in [&scope.cluster, &scope.session] {
            bound.extend_from_slice(&(text.len() as u16).to_le_bytes());
            bound.extend_from_slice(text.as_bytes());
        }
        Self { aead: LessSafeKey::new(unbound), bound }
    }

    fn nonce(kind: BoxKind, number: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[0] = kind as u8;
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Bound data: scope, kind, number.
    fn aad(&self, kind: BoxKind, number: u64) -> Aad<Vec<u8>> {
        let mut bound = Vec::with_capacity(self.bound.len() + 9);
        bound.extend_from_slice(&self.bound);
        bound.push(kind as u8);
        bound.extend_from_slice(&number.to_le_bytes());
        Aad::from(bound)
    }

    /// Seals `buffer[from..]` in place and appends the tag.
    ///
    /// A `(kind, number)` must never be used twice under one key: sessions count them.
    pub fn seal(&self, kind: BoxKind, number: u64, buffer: &mut Vec<u8>, from: usize) {
        let tag = self
            .aead
            .seal_in_place_separate_tag(
                Self::nonce(kind, number),
                self.aad(kind, number),
                &mut buffer[from..],
            )
            .expect("a box is far below the limit of AES-GCM");
        buffer.extend_from_slice(tag.as_ref());
    }

    /// Opens a sealed box in place and gives the plain part of it.
    pub fn open<'a>(
        &self,
        kind: BoxKind,
        number: u64,
        object: &str,
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], RepoError> {
        self.aead
            .open_in_place(Self::nonce(kind, number), self.aad(kind, number), sealed)
            .map_err(|_| RepoError::damaged(object, "its seal does not hold"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(session: &str) -> Scope {
        Scope {
            repository: RepositoryId([7; 16]),
            cluster: "main".to_owned(),
            session: session.to_owned(),
        }
    }

    #[test]
    fn a_box_opens_only_as_what_it_was_sealed() {
        let index = IndexKey::from_bytes([1; 32]);
        let key = index.session(&scope("a"));
        let mut sealed = b"content".to_vec();
        key.seal(BoxKind::MapPart, 3, &mut sealed, 0);
        let open = |key: &SealKey, kind, number| {
            let mut copy = sealed.clone();
            key.open(kind, number, "x", &mut copy).map(|plain| plain.to_vec())
        };
        assert_eq!(open(&key, BoxKind::MapPart, 3).unwrap(), b"content");
        assert!(open(&key, BoxKind::MapPart, 4).is_err(), "another number");
        assert!(open(&key, BoxKind::TableChunk, 3).is_err(), "another kind");
        assert!(open(&index.session(&scope("b")), BoxKind::MapPart, 3).is_err(), "session");
        let bytes = [9; 32];
        let mine = SealKey::new(&bytes, &scope("a"));
        let mut sealed = b"x".to_vec();
        mine.seal(BoxKind::Extent, 0, &mut sealed, 0);
        let foreign = SealKey::new(&bytes, &scope("b"));
        assert!(foreign.open(BoxKind::Extent, 0, "x", &mut sealed).is_err(), "bound to the scope");
    }

    #[test]
    fn a_single_object_sealed_twice_never_meets_its_key_again() {
        let index = IndexKey::from_bytes([1; 32]);
        let scope = scope("lease/000000000001");
        let seal = |scope: &Scope| {
            let mut out = Vec::new();
            index.seal_single(scope, BoxKind::Lease, b"content", &SystemEntropy, &mut out);
            out
        };
        let (one, two) = (seal(&scope), seal(&scope));
        assert_eq!(one.len(), SALT_BYTES + b"content".len() + TAG_BYTES);
        assert_ne!(one[SALT_BYTES..], two[SALT_BYTES..], "one key and nonce would give one text");
        let open = |scope: &Scope, kind, sealed: &[u8]| {
            let mut copy = sealed.to_vec();
            index.open_single(scope, kind, "x", &mut copy).map(|plain| plain.to_vec())
        };
        for sealed in [&one, &two] {
            assert_eq!(open(&scope, BoxKind::Lease, sealed).unwrap(), b"content");
        }
        assert!(open(&scope, BoxKind::Event, &one).is_err(), "another kind");
        let other = Scope { session: "lease/000000000002".to_owned(), ..scope.clone() };
        assert!(open(&other, BoxKind::Lease, &one).is_err(), "another name");
        for length in 0..one.len() {
            assert!(open(&scope, BoxKind::Lease, &one[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let key = IndexKey::from_bytes([1; 32]).session(&scope("a"));
        let mut sealed = b"some content".to_vec();
        key.seal(BoxKind::Extent, 0, &mut sealed, 0);
        for bit in 0..sealed.len() * 8 {
            let mut copy = sealed.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            assert!(key.open(BoxKind::Extent, 0, "x", &mut copy).is_err(), "bit {bit}");
        }
    }
}
