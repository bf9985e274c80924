//! A wire in between that can lose answers: what was asked is done, and nobody hears of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Questions on their way, with the connections that they travel on.
type Delayed = Arc<Mutex<Vec<(TcpStream, Vec<u8>)>>>;

/// Carries bytes to a server and back.
pub struct Wire {
    pub address: String,
    losing: Arc<AtomicBool>,
    delaying: Arc<AtomicBool>,
    delayed: Delayed,
    carrying: JoinHandle<()>,
}

impl Wire {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let losing = Arc::new(AtomicBool::new(false));
        let (delaying, delayed) = <(Arc<AtomicBool>, Delayed)>::default();
        let faults = (losing.clone(), delaying.clone(), delayed.clone());
        let carrying = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await {
                    tokio::spawn(carry(client, server, faults.clone()));
                }
            }
        });
        Self {
            address,
            losing,
            delaying,
            delayed,
            carrying,
        }
    }

    /// The next answer, of whichever connection, ends its connection instead.
    pub fn lose_an_answer(&self) {
        self.losing.store(true, Ordering::SeqCst);
    }

    /// The next question is on its way for long, while its connection seems to end.
    pub fn delay_a_question(&self) {
        self.delaying.store(true, Ordering::SeqCst);
    }

    /// What was delayed arrives. Says what Redis answers, which nobody else hears.
    pub async fn arrive(&self) -> Vec<String> {
        let mut answers = Vec::new();
        let delayed = std::mem::take(&mut *self.delayed.lock().unwrap());
        for (mut server, question) in delayed {
            server.write_all(&question).await.unwrap();
            let mut answer = vec![0; 65536];
            let read = server.read(&mut answer).await.unwrap();
            answers.push(String::from_utf8_lossy(&answer[..read]).into_owned());
        }
        answers
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

async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    (lose, delay, delayed): (Arc<AtomicBool>, Arc<AtomicBool>, Delayed),
) {
    let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut asked) => match read {
                Ok(n) if n > 0 => {
                    if delay.swap(false, Ordering::SeqCst) {
                        delayed.lock().unwrap().push((server, asked[..n].to_vec()));
                        return;
                    }
                    server.write_all(&asked[..n]).await.unwrap();
                }
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
