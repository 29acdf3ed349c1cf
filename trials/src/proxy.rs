//! What comes back from a server, counted and cut.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat_testkit::scratch::ScratchServer;

/// A socket that passes bytes on, and breaks every connection once so many have come back.
pub struct Proxy {
    directory: PathBuf,
    /// How many bytes may still come back, in bytes.
    pub left: Arc<AtomicU64>,
    /// How many have come back, in bytes.
    pub passed: Arc<AtomicU64>,
}

impl Proxy {
    /// Begins to listen, and passes everything on.
    pub fn start(server: &ScratchServer) -> Self {
        let directory = server.directory("proxy");
        let path = directory.join(".s.PGSQL.5432");
        let listener = UnixListener::bind(&path).expect("a socket can be made");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))
            .expect("the socket can be opened to all");
        let real = server.socket_directory().join(format!(".s.PGSQL.{}", server.port()));
        let (left, passed) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicU64::new(0)));
        let (budget, counter) = (Arc::clone(&left), Arc::clone(&passed));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = UnixStream::connect(&real) else { continue };
                let both = (client.try_clone(), server.try_clone());
                let (Ok(to_client), Ok(from_server)) = both else { continue };
                std::thread::spawn(move || pass(client, server, Some));
                let (budget, counter) = (Arc::clone(&budget), Arc::clone(&counter));
                std::thread::spawn(move || {
                    pass(from_server, to_client, |count| {
                        counter.fetch_add(count as u64, Ordering::SeqCst);
                        let take = |left: u64| left.checked_sub(count as u64);
                        let taken = budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
                        taken.ok().map(|_| count)
                    });
                });
            }
        });
        Self { directory, left, passed }
    }

    /// A setting that leads the program through it.
    pub fn conninfo(&self) -> String {
        let host = self.directory.display();
        format!("postgres.conninfo=host='{host}' port=5432 user=postgres dbname=postgres")
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, allow: impl Fn(usize) -> Option<usize>) {
    let mut buffer = [0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if allow(count).is_none() || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(std::net::Shutdown::Both);
    let _ = to.shutdown(std::net::Shutdown::Both);
}
