//! The door: so many connections at once, and none that says nothing for a minute.
//!
//! A connection that waits for its turn waits in the kernel's queue. The silence of a connection
//! whose request is being worked on counts too; a request ends before a minute has passed, or its
//! answer goes on. Whoever does not read what is written is silent as well.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

const CONNECTIONS: usize = 256;
const SILENCE: Duration = Duration::from_secs(60);

pub struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl Door {
    pub fn new(listener: TcpListener) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        Self { listener, places }
    }
}

impl Listener for Door {
    type Io = Visitor<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let place = self.places.clone().acquire_owned().await;
        let place = place.expect("the places are never closed");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Answers are small and written at once.
        let _ = stream.set_nodelay(true);
        (Visitor::new(stream, place), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its place, and the time until it has been silent for too long.
pub struct Visitor<S> {
    stream: S,
    silence: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Visitor<S> {
    fn new(stream: S, place: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            silence: Box::pin(sleep(SILENCE)),
            _place: place,
        }
    }

    /// What the other side takes is a sign of its life.
    fn heard(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(1..)) = written {
            self.silence.as_mut().reset(Instant::now() + SILENCE);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Visitor<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            self.silence.as_mut().reset(Instant::now() + SILENCE);
            return read;
        }
        let silent = self.silence.as_mut().poll(cx);
        silent.map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Visitor<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.heard(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.heard(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed_and_one_that_speaks_is_not() {
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let (near, mut far) = duplex(16);
        let mut visitor = Visitor::new(near, place);
        let mut byte = [0];
        for _ in 0..3 {
            sleep(Duration::from_secs(50)).await;
            far.write_all(b"x").await.unwrap();
            visitor.read_exact(&mut byte).await.unwrap();
        }
        let silent = visitor.read_exact(&mut byte).await;
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_goes_on_keeps_its_connection() {
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let (near, mut far) = duplex(16);
        let mut visitor = Visitor::new(near, place);
        let mut byte = [0];
        for _ in 0..3 {
            let silence = tokio::time::timeout(Duration::from_secs(50), visitor.read(&mut byte));
            assert!(silence.await.is_err());
            visitor.write_all(b"x").await.unwrap();
            far.read_exact(&mut byte).await.unwrap();
        }
        let silent = visitor.read_exact(&mut byte).await;
        assert_eq!(silent.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
