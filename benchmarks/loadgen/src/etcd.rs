//! One connection to etcd: gRPC by hand, which for these two calls is little more than HTTP/2 and a few bytes.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{Method, Request};
use tokio::net::TcpStream;

use crate::Operation;

pub struct Client {
    sender: SendRequest<Bytes>,
    authority: String,
}

impl Client {
    pub async fn connect(endpoint: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(endpoint).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
        tokio::task::spawn_local(async move {
            // What goes wrong here is told to whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            authority: endpoint.to_owned(),
        })
    }

    pub async fn call(&mut self, operation: Operation, key: u64, value: &str) -> io::Result<()> {
        let key = format!("/data/bench/{key}");
        let mut message = BytesMut::new();
        field(&mut message, 1, key.as_bytes());
        if operation == Operation::Put {
            field(&mut message, 2, value.as_bytes());
        }
        let method = if operation == Operation::Put { "Put" } else { "Range" };
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).map_err(io::Error::other)?);
        framed.put(message);
        self.exchange(method, framed.freeze()).await.map_err(io::Error::other)?
    }

    async fn exchange(&mut self, method: &str, body: Bytes) -> Result<io::Result<()>, h2::Error> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}/etcdserverpb.KV/{method}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap_or_default();
        std::future::poll_fn(|context| self.sender.poll_ready(context)).await?;
        let (response, mut stream) = self.sender.send_request(request, false)?;
        stream.send_data(body, true)?;
        let (head, mut body) = response.await?.into_parts();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
        }
        let trailers = body.trailers().await?;
        let status = trailers.as_ref().unwrap_or(&head.headers).get("grpc-status");
        Ok(match status.map(http::HeaderValue::as_bytes) {
            Some(b"0") => Ok(()),
            other => Err(io::Error::other(format!("etcd answered {other:?}"))),
        })
    }
}

/// Adds one field of bytes, shorter than 16 KiB, to a protobuf message.
fn field(message: &mut BytesMut, number: u8, value: &[u8]) {
    message.put_u8(number << 3 | 2);
    let [low, high, ..] = value.len().to_le_bytes();
    if value.len() < 0x80 {
        message.put_u8(low);
    } else {
        message.put_u8(low | 0x80);
        message.put_u8(high << 1 | low >> 7);
    }
    message.put(value);
}
