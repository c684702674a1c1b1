//! A key-value service over HTTP that closes its store before it exits: GET, PUT and DELETE on `/kv/{key}`.
//!
//! ```text
//! cargo run --example axum_service                                # starts the service, calls it, and stops it
//! cargo run --example axum_service -- serve 127.0.0.1:8080 DIR    # serves until SIGTERM or ctrl-c
//! ```
//!
//! The handlers share clones of one store handle, and errors become status codes by their kind. To stop, the service
//! accepts no more connections, finishes the open requests, and then closes the store.

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use ringcask::{ErrorKind, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

type Failure = Box<dyn Error + Send + Sync>;

/// The largest value that the service accepts, below axum's default limit of 2 MB for a body.
const MAX_VALUE_BYTES: u64 = 1 << 20;

/// An error of the store as a response.
struct StoreError(ringcask::Error);

impl From<ringcask::Error> for StoreError {
    fn from(error: ringcask::Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for StoreError {
    fn into_response(self) -> Response {
        let status = match self.0.kind() {
            ErrorKind::InvalidInput => StatusCode::BAD_REQUEST,
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            // The service is stopping, or the disk failed and the store must be reopened.
            ErrorKind::Closed | ErrorKind::Poisoned => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status.is_client_error() {
            return (status, format!("{}\n", self.0)).into_response();
        }
        // The message contains paths of the server: it goes to the log, not to the client. A failed write may have been
        // applied. PUT and DELETE are idempotent, so the client can repeat them.
        eprintln!("{}", self.0);
        status.into_response()
    }
}

async fn read(State(store): State<Store>, UrlPath(key): UrlPath<String>) -> Result<Response, StoreError> {
    Ok(match store.get(key).await? {
        Some(value) => value.into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

/// Responds when the value is on stable storage.
async fn write(
    State(store): State<Store>,
    UrlPath(key): UrlPath<String>,
    value: Bytes,
) -> Result<StatusCode, StoreError> {
    store.put_bytes(key, value).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove(State(store): State<Store>, UrlPath(key): UrlPath<String>) -> Result<StatusCode, StoreError> {
    let existed = store.delete(key).await?;
    Ok(if existed { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND })
}

/// Serves the store in `directory` until `stop` resolves, then closes the store.
async fn serve(
    listener: TcpListener,
    directory: &Path,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Failure> {
    let store = Store::builder(directory).max_value_bytes(MAX_VALUE_BYTES).open().await?;
    let handlers = get(read).put(write).delete(remove);
    let service = Router::new().route("/kv/{key}", handlers).with_state(store.clone());
    // Waits for the requests in progress. A public service also needs a limit on how long a request may take.
    let served = axum::serve(listener, service).with_graceful_shutdown(stop).await;
    store.close().await?;
    Ok(served?)
}

/// Serves until SIGTERM or ctrl-c.
async fn serve_until_signal(listener: TcpListener, directory: &Path) -> Result<(), Failure> {
    // Both handlers are installed before the first request.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    serve(listener, directory, stop).await
}

/// Sends one request. Returns the status code and the body of the response.
async fn request(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> Result<(u16, String), Failure> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}");
    stream.write_all(&[head.as_bytes(), b"\r\n\r\n", body].concat()).await?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or("no HTTP response")?;
    let status = head.split(' ').nth(1).ok_or("no status code")?.parse()?;
    println!("{method} {path} of {length} bytes: {status} {}", body.trim_end());
    Ok((status, body.to_owned()))
}

/// Starts the service on a free port, calls it, stops it, and reads the directory again.
async fn demonstrate() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("store");
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();

    let client = async move {
        assert_eq!(request(address, "PUT", "/kv/user:1", b"Ada").await?.0, 204);
        assert_eq!(request(address, "PUT", "/kv/user:2", b"Grace").await?.0, 204);
        assert_eq!(request(address, "GET", "/kv/user:1", b"").await?, (200, "Ada".to_owned()));
        assert_eq!(request(address, "DELETE", "/kv/user:1", b"").await?.0, 204);
        assert_eq!(request(address, "GET", "/kv/user:1", b"").await?.0, 404);
        let (status, message) = request(address, "PUT", "/kv/large", &vec![0; (1 << 20) + 1]).await?;
        assert_eq!(status, 413, "{message}");
        drop(stop);
        Ok::<(), Failure>(())
    };
    let service = serve(listener, &path, async {
        let _ = stopped.await;
    });
    tokio::try_join!(service, client)?;

    let store = Store::open(&path).await?;
    assert!(store.recovery_report().truncated_bytes == 0, "the service closed the store");
    assert_eq!(store.get("user:2").await?.as_deref(), Some(&b"Grace"[..]));
    println!("after a restart: {} key", store.len());
    Ok(store.close().await?)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => demonstrate().await,
        ["serve", address, directory] => {
            let listener = TcpListener::bind(address).await?;
            eprintln!("listening on http://{}/kv/", listener.local_addr()?);
            serve_until_signal(listener, Path::new(directory)).await?;
            eprintln!("the store is closed");
            Ok(())
        }
        _ => Err("usage: axum_service [serve ADDR DIR]".into()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn runs() {
        demonstrate().await.unwrap();
    }

    #[tokio::test]
    async fn sigterm_stops_the_service_and_closes_the_store() {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = async {
            // Answered only by a running service, whose handler of the signal is installed.
            assert_eq!(request(address, "PUT", "/kv/key", b"value").await?.0, 204);
            Ok(kill_process(getpid(), Signal::TERM)?)
        };
        tokio::try_join!(serve_until_signal(listener, directory.path()), client).unwrap();
        let store = Store::open(directory.path()).await.unwrap();
        assert_eq!(store.get("key").await.unwrap().as_deref(), Some(&b"value"[..]));
        store.close().await.unwrap();
    }
}
