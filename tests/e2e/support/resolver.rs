//! A name server for one gateway, which is started where it finds no other.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;

use super::{Config, SOON, eventually};

/// What it says to every question for an IPv4 address; for any other there is no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    Addresses(Vec<Ipv4Addr>),
    /// The name is there, and has no record.
    NoRecord,
    /// RFC 1035 §4.1.1: code 3.
    NoSuchName,
    /// RFC 1035 §4.1.1: code 2.
    ServerFailure,
    Silence,
}

/// A running name server; it ends when it is dropped.
pub struct Resolver {
    says: Arc<Mutex<Lookup>>,
    asked: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    files: TempDir,
}

impl Resolver {
    /// `None`, and a word about it, where this user may neither take port 53 nor mount files.
    pub fn start(says: Lookup) -> Option<Self> {
        let mut mount = Command::new("unshare");
        mount.args(["-rm", "sh", "-c", "mount --bind /dev/null /etc/resolv.conf"]);
        let may_mount = mount.output().is_ok_and(|output| output.status.success());
        let Some(socket) = socket().filter(|_| may_mount) else {
            eprintln!("skipped: no name server can be set up here");
            return None;
        };
        let files = tempfile::tempdir().unwrap();
        let at = socket.local_addr().unwrap().ip();
        let of_its_own = format!("nameserver {at}\noptions timeout:1 attempts:1\n");
        std::fs::write(files.path().join("resolv.conf"), of_its_own).unwrap();
        std::fs::write(files.path().join("nsswitch.conf"), "hosts: dns\n").unwrap();
        let mut resolver = Self {
            says: Arc::new(Mutex::new(says)),
            asked: Arc::default(),
            over: Arc::default(),
            thread: None,
            files,
        };
        let (says, asked) = (resolver.says.clone(), resolver.asked.clone());
        let over = resolver.over.clone();
        let serve = move || serve(&socket, &says, &asked, &over);
        resolver.thread = Some(std::thread::spawn(serve));
        Some(resolver)
    }

    /// Lets the gateway's process ask this one and nobody else.
    pub fn for_one(&self, config: Config) -> Config {
        let files = self.files.path().display();
        let mounts = format!(
            "mount --bind {files}/resolv.conf /etc/resolv.conf \
             && mount --bind {files}/nsswitch.conf /etc/nsswitch.conf && exec \"$0\" \"$@\""
        );
        config.under(&["unshare", "-rm", "sh", "-c", &mounts])
    }

    /// What it says from now on; back when it has been asked twice since, so that whoever asks in
    /// turn has used the first answer.
    pub fn says(&self, says: Lookup) {
        *self.says.lock() = says;
        let before = self.asked.load(Ordering::Acquire);
        eventually("it was asked again", SOON, || {
            // Each time for both kinds of address.
            (self.asked.load(Ordering::Acquire) >= before + 4).then_some(())
        });
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// Name servers are at port 53, so each has an address of its own.
fn socket() -> Option<UdpSocket> {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let last = NEXT.fetch_add(1, Ordering::Relaxed);
    let at = Ipv4Addr::new(127, high | 1, low, last);
    let socket = UdpSocket::bind(SocketAddr::from((at, 53))).ok()?;
    let brief = Some(Duration::from_millis(20));
    socket.set_read_timeout(brief).unwrap();
    Some(socket)
}

fn serve(socket: &UdpSocket, says: &Mutex<Lookup>, asked: &AtomicUsize, over: &AtomicBool) {
    let mut packet = [0; 512];
    while !over.load(Ordering::Acquire) {
        let Ok((length, from)) = socket.recv_from(&mut packet) else {
            continue;
        };
        let answer = answer(&packet[..length], &says.lock());
        if let Some(answer) = answer {
            socket.send_to(&answer, from).unwrap();
        }
        asked.fetch_add(1, Ordering::AcqRel);
    }
}

/// RFC 1035 §4: the question's id and the question, and the records that are asked for.
fn answer(question: &[u8], says: &Lookup) -> Option<Vec<u8>> {
    const A: [u8; 2] = [0, 1];
    let name = question[12..].iter().position(|byte| *byte == 0).unwrap();
    let end = 12 + name + 5;
    let wants_ipv4 = question[end - 4..end - 2] == A;
    let (code, addresses) = match says {
        Lookup::Addresses(all) if wants_ipv4 => (0, all.as_slice()),
        Lookup::Addresses(_) | Lookup::NoRecord => (0, &[][..]),
        Lookup::NoSuchName => (3, &[][..]),
        Lookup::ServerFailure => (2, &[][..]),
        Lookup::Silence => return None,
    };
    let records = u8::try_from(addresses.len()).unwrap();
    let mut answer = question[..2].to_vec();
    // An answer, to a question that wanted recursion, which there is.
    answer.extend([0x81, 0x80 | code, 0, 1, 0, records, 0, 0, 0, 0]);
    answer.extend(&question[12..end]);
    for address in addresses {
        // The name of the question, an address, for a second, of four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
