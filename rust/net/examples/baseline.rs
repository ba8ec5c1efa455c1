//! What the same machine does without this transport: plain TCP, and plain QUIC of the same library, between two
//! processes on the loopback interface. `benchmarks/net.py` runs it; each result is a line of name and number.
//!
//! `cargo run --release -p jobs-net --example baseline -- ROUND_TRIPS MESSAGES BULK_MIB`

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use iroh::endpoint::presets;
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, TransportAddr};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ALPN: &[u8] = b"baseline";
const SMALL: usize = 128;
const MESSAGE: usize = 205;
const CHUNK: usize = 256 << 10;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// Round trips, messages, bytes.
struct Load {
    round_trips: usize,
    messages: usize,
    bulk: usize,
}

/// Serve one load: echo, then count, then count again.
async fn serve(mut read: impl AsyncRead + Unpin, mut write: impl AsyncWrite + Unpin, load: &Load) -> Fallible<()> {
    let mut small = [0; SMALL];
    for _ in 0..load.round_trips {
        read.read_exact(&mut small).await?;
        write.write_all(&small).await?;
    }
    for mut left in [load.messages * MESSAGE, load.bulk] {
        let mut buffer = vec![0; CHUNK];
        while left > 0 {
            left -= read.read(&mut buffer).await?;
        }
        write.write_all(&[1]).await?;
    }
    // The other side ends it, so that nothing is lost.
    let _ = read.read(&mut small).await;
    Ok(())
}

async fn drive(
    name: &str,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    load: &Load,
) -> Fallible<()> {
    let mut small = [0; SMALL];
    let mut times = Vec::with_capacity(load.round_trips);
    for _ in 0..load.round_trips {
        let started = Instant::now();
        write.write_all(&small).await?;
        read.read_exact(&mut small).await?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    println!("{name}_p50_us {:.1}", times[times.len() / 2]);
    println!("{name}_p99_us {:.1}", times[times.len() * 99 / 100]);
    let started = Instant::now();
    let message = [7; MESSAGE];
    let batch = message.repeat(CHUNK / MESSAGE);
    let mut left = load.messages * MESSAGE;
    while left > 0 {
        let length = left.min(batch.len());
        write.write_all(&batch[..length]).await?;
        left -= length;
    }
    read.read_exact(&mut small[..1]).await?;
    #[allow(clippy::cast_precision_loss, reason = "figures for people")]
    let rate = |count: usize, started: Instant| count as f64 / started.elapsed().as_secs_f64();
    println!("{name}_messages_per_s {:.0}", rate(load.messages, started));
    let started = Instant::now();
    let chunk = vec![7; CHUNK];
    for _ in 0..load.bulk / CHUNK {
        write.write_all(&chunk).await?;
    }
    read.read_exact(&mut small[..1]).await?;
    println!("{name}_bulk_mb_per_s {:.0}", rate(load.bulk, started) / 1e6);
    Ok(())
}

async fn endpoint() -> Fallible<Endpoint> {
    let builder = Endpoint::builder(presets::Minimal)
        .relay_mode(RelayMode::Disabled)
        .clear_address_lookup()
        .clear_ip_transports()
        .alpns(vec![ALPN.to_vec()]);
    Ok(builder.bind_addr("127.0.0.1:0")?.bind().await?)
}

async fn child(load: &Load) -> Fallible<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = endpoint().await?;
    println!(
        "{} {} {}",
        listener.local_addr()?,
        endpoint.id(),
        endpoint.bound_sockets()[0]
    );
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    serve(read, write, load).await?;
    let connection = endpoint.accept().await.ok_or("the endpoint is closed")?.await?;
    let (write, read) = connection.accept_bi().await?;
    serve(read, write, load).await
}

async fn parent(load: &Load, tcp: SocketAddr, id: EndpointId, quic: SocketAddr) -> Fallible<()> {
    let stream = TcpStream::connect(tcp).await?;
    stream.set_nodelay(true)?;
    let (read, write) = stream.into_split();
    drive("tcp", read, write, load).await?;
    let endpoint = endpoint().await?;
    let address = EndpointAddr::from_parts(id, [TransportAddr::Ip(quic)]);
    let connection = endpoint.connect(address, ALPN).await?;
    let (write, read) = connection.open_bi().await?;
    drive("quic", read, write, load).await?;
    endpoint.close().await;
    Ok(())
}

fn spawn(arguments: &[String]) -> Fallible<(Child, String)> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    Ok((child, line))
}

fn main() -> Fallible<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let serves = arguments.first().is_some_and(|first| first == "serve");
    if serves {
        arguments.remove(0);
    }
    let numbers: Vec<usize> = arguments.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let [round_trips, messages, bulk_mib] = numbers[..] else {
        return Err("usage: baseline ROUND_TRIPS MESSAGES BULK_MIB".into());
    };
    let load = Load {
        round_trips,
        messages,
        bulk: bulk_mib << 20,
    };
    // As many threads as the transport has.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    if serves {
        return runtime.block_on(child(&load));
    }
    let (mut child, line) = spawn(&arguments)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [tcp, id, quic] = words[..] else {
        return Err("the child did not start".into());
    };
    runtime.block_on(parent(&load, tcp.parse()?, id.parse()?, quic.parse()?))?;
    std::io::stdout().flush()?;
    child.kill()?;
    child.wait()?;
    Ok(())
}
