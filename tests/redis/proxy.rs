//! A wire in between that can lose answers: what was asked is done, and nobody hears of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Carries bytes to a server and back.
pub struct Wire {
    pub address: String,
    losing: Arc<AtomicBool>,
    carrying: JoinHandle<()>,
}

impl Wire {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let losing = Arc::new(AtomicBool::new(false));
        let lose = losing.clone();
        let carrying = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await {
                    tokio::spawn(carry(client, server, lose.clone()));
                }
            }
        });
        Self {
            address,
            losing,
            carrying,
        }
    }

    /// The next answer, of whichever connection, ends its connection instead.
    pub fn lose_an_answer(&self) {
        self.losing.store(true, Ordering::SeqCst);
    }

    pub fn has_lost(&self) -> bool {
        !self.losing.load(Ordering::SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, lose: Arc<AtomicBool>) {
    let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => match read {
                Ok(n) if n > 0 => server.write_all(&asked[..n]).await.unwrap(),
                _ => return,
            },
            read = server.read(&mut answered) => match read {
                Ok(n) if n > 0 => {
                    if lose.swap(false, Ordering::SeqCst) {
                        return;
                    }
                    if client.write_all(&answered[..n]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
