//! A wire between the gateway and an upstream that can be cut, blocked and slowed while it is in
//! use. It knows bytes and no HTTP.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use super::SOON;

/// Pieces on their way in one direction; a delay holds no more.
const ON_THE_WAY: usize = 4096;

/// A running relay; it ends, and resets what it carries, when it is dropped.
///
/// It passes everything on until it is told otherwise.
pub struct Relay {
    address: SocketAddr,
    way: watch::Sender<Way>,
    doors: mpsc::Sender<Door>,
    open: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// What happens to bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Way {
    blocked: bool,
    delay: Duration,
    /// Bytes towards the client after which a connection is closed, counted from its beginning.
    cut_after: Option<usize>,
    /// Connections that began before this many resets are broken.
    resets: usize,
}

/// Whether anybody listens; told back when it is so.
enum Door {
    Open(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

impl Relay {
    /// Starts one to `target`, in a thread of its own.
    pub fn to(target: SocketAddr) -> Self {
        // Bound and never listening: the port stays ours while the door is closed.
        let reserved = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        reserved.set_reuse_address(true).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        reserved.bind(&any.into()).unwrap();
        let address = reserved.local_addr().unwrap().as_socket().unwrap();
        let (way, on_way) = watch::channel(Way::default());
        let (doors, told) = mpsc::channel(1);
        let (open, accepted) = (Arc::default(), Arc::default());
        let hall = Hall {
            address,
            target,
            way: on_way,
            open: Arc::clone(&open),
            accepted: Arc::clone(&accepted),
        };
        let thread = std::thread::spawn(move || {
            let _reserved = reserved;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(hall.serve(told));
        });
        let relay = Self {
            address,
            way,
            doors,
            open,
            accepted,
            thread: Some(thread),
        };
        relay.listen();
        relay
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://host:port`, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Passes everything on again, what was held back included. Who listens stays as it is.
    pub fn pass(&self) {
        self.way.send_modify(|way| {
            *way = Way {
                resets: way.resets,
                ..Way::default()
            };
        });
    }

    /// Passes nothing on, in either direction, and ends nothing: as if packets were dropped.
    /// Connections are still accepted, by the system.
    pub fn block(&self) {
        self.way.send_modify(|way| way.blocked = true);
    }

    /// Every byte is so much later, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.way.send_modify(|way| way.delay = delay);
    }

    /// Closes each connection after so many bytes towards the client, counted from its beginning.
    pub fn cut_after(&self, bytes: usize) {
        self.way.send_modify(|way| way.cut_after = Some(bytes));
    }

    /// Resets all open connections, on both sides.
    pub fn reset_all(&self) {
        self.way.send_modify(|way| way.resets += 1);
    }

    /// New connections are refused; open ones stay.
    pub fn refuse(&self) {
        self.turn(Door::Close);
    }

    /// New connections are accepted again, on the same port.
    pub fn listen(&self) {
        self.turn(Door::Open);
    }

    fn turn(&self, door: fn(oneshot::Sender<()>) -> Door) {
        let (done, is_done) = oneshot::channel();
        assert!(self.doors.blocking_send(door(done)).is_ok());
        is_done.blocking_recv().unwrap();
    }

    /// Connections that are open. One whose client has left while everything is blocked counts
    /// until the relay passes again.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Connections that were ever accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Acquire)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.reset_all();
        // Without doors the hall ends.
        let (doors, _) = mpsc::channel(1);
        self.doors = doors;
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// A process that is being started elsewhere in this one has the listener that was closed a moment
/// longer, until it executes its own program.
async fn listen(address: SocketAddr) -> TcpListener {
    let deadline = Instant::now() + SOON;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            listener => return listener.unwrap(),
        }
    }
}

/// Where connections come in.
struct Hall {
    address: SocketAddr,
    target: SocketAddr,
    way: watch::Receiver<Way>,
    open: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
}

impl Hall {
    async fn serve(self, mut doors: mpsc::Receiver<Door>) {
        let mut listener = None;
        loop {
            let client = tokio::select! {
                door = doors.recv() => {
                    let done = match door {
                        None => return,
                        Some(Door::Open(done)) => {
                            // The old one first: two cannot listen.
                            drop(listener.take());
                            listener = Some(listen(self.address).await);
                            done
                        }
                        Some(Door::Close(done)) => {
                            drop(listener.take());
                            done
                        }
                    };
                    let _ = done.send(());
                    continue;
                }
                client = accept(listener.as_ref()) => client,
            };
            self.accepted.fetch_add(1, Ordering::AcqRel);
            let counted = Counted::new(&self.open);
            let (target, way) = (self.target, self.way.clone());
            tokio::spawn(async move {
                let _counted = counted;
                carry(client, target, way).await;
            });
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    loop {
        match listener {
            None => std::future::pending().await,
            Some(listener) => {
                if let Ok((client, _)) = listener.accept().await {
                    return client;
                }
            }
        }
    }
}

/// One open connection.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Carries one connection to its end.
async fn carry(mut client: TcpStream, target: SocketAddr, mut way: watch::Receiver<Way>) {
    let resets = way.borrow().resets;
    let mut broken = way.clone();
    let broken = broken.wait_for(|way| way.resets != resets);
    tokio::pin!(broken);
    let server = tokio::select! {
        server = connect(target, &mut way) => server,
        _ = &mut broken => Err(io::ErrorKind::ConnectionReset.into()),
    };
    // Whom nobody listens to behind the relay is reset, as well as it can be told.
    let Ok(mut server) = server else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let reset = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pump(from_client, to_server, way.clone(), false);
        let down = pump(from_server, to_client, way.clone(), true);
        tokio::select! {
            ended = async { tokio::try_join!(up, down) } => matches!(ended, Err(End::Reset)),
            _ = &mut broken => true,
        }
    };
    if reset {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

async fn connect(target: SocketAddr, way: &mut watch::Receiver<Way>) -> io::Result<TcpStream> {
    let _ = way.wait_for(|way| !way.blocked).await;
    TcpStream::connect(target).await
}

/// Why a connection ends in both directions.
enum End {
    /// It was to be cut here.
    Cut,
    /// One side has gone.
    Reset,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Reset
    }
}

/// Carries bytes in one direction, and then its orderly end.
async fn pump(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    way: watch::Receiver<Way>,
    downstream: bool,
) -> Result<(), End> {
    let (pieces, arriving) = mpsc::channel(ON_THE_WAY);
    tokio::try_join!(
        take(from, pieces, way.clone()),
        give(to, arriving, way, downstream)
    )?;
    Ok(())
}

async fn take(
    mut from: ReadHalf<'_>,
    pieces: mpsc::Sender<(Instant, Bytes)>,
    mut way: watch::Receiver<Way>,
) -> Result<(), End> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let _ = way.wait_for(|way| !way.blocked).await;
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            _ = way.wait_for(|way| way.blocked) => continue,
        };
        let due = Instant::now() + way.borrow().delay;
        let piece = Bytes::copy_from_slice(&buffer[..read]);
        // An empty piece is the end: it is as late as everything else.
        if pieces.send((due, piece)).await.is_err() || read == 0 {
            return Ok(());
        }
    }
}

async fn give(
    mut to: WriteHalf<'_>,
    mut arriving: mpsc::Receiver<(Instant, Bytes)>,
    mut way: watch::Receiver<Way>,
    downstream: bool,
) -> Result<(), End> {
    let mut given = 0;
    while let Some((due, mut piece)) = arriving.recv().await {
        sleep_until(due).await;
        let most = way.wait_for(|way| !way.blocked).await.ok();
        let most = most.and_then(|way| way.cut_after.filter(|_| downstream));
        if piece.is_empty() {
            to.shutdown().await?;
            return Ok(());
        }
        let cut = most.filter(|most| given + piece.len() >= *most);
        if let Some(most) = cut {
            piece.truncate(most.saturating_sub(given));
        }
        to.write_all(&piece).await?;
        given += piece.len();
        if cut.is_some() {
            return Err(End::Cut);
        }
    }
    Ok(())
}
