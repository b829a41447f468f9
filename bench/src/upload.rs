//! P12: an upload of one GiB with a key, in constant memory, and its retry.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use crate::{
    Outcome,
    load::message_length,
    measure::Effort,
    orders::fresh_key,
    process::{MEASURED, Server},
    report::{Number, Row},
    roles,
};

const MIB: u64 = 1024 * 1024;
const PIECE: usize = 256 * 1024;

pub(crate) fn measure(effort: Effort) -> Outcome<Vec<Row>> {
    let length = match effort {
        Effort::Full => 1024 * MIB,
        Effort::Quick => 64 * MIB,
    };
    let server = Server::role(&[roles::UPLOADS], MEASURED)?;
    // What the first request of any size needs is not what a large one needs more.
    upload(server.address, &fresh_key(), MIB, 0)?;
    let before = peak(server.address)?;
    let key = fresh_key();
    let first = upload(server.address, &key, length, 0)?;
    let retry = upload(server.address, &key, length, 0)?;
    let after = peak(server.address)?;
    let changed = upload(server.address, &key, length, 1)?;

    let replayed = is(&retry, 201) && retry.contains("idempotent-replayed: true");
    let told = format!("{{\"bytes\":{length}}}");
    if !is(&first, 201) || !first.ends_with(&told) {
        return Err(format!("an upload was answered {first}").into());
    }
    let grown = Number::of((after - before) / MIB as f64, 1, "MiB");
    let what = |what| format!("{} MiB upload: {what}", length / MIB);
    Ok(vec![
        Row::at_most("P12", what("memory grows by"), grown, 16.0),
        Row::holds("P12", what("the retry is replayed"), replayed && retry.ends_with(&told)),
        Row::holds("P12", what("one whose last byte differs is refused"), is(&changed, 422)),
    ])
}

/// Sends a body that ends with `last`, and gives the answer.
fn upload(address: SocketAddr, key: &str, length: u64, last: u8) -> Outcome<String> {
    let mut connection = TcpStream::connect(address)?;
    let head = format!(
        "POST /uploads HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/octet-stream\r\n\
         content-length: {length}\r\nidempotency-key: {key}\r\nconnection: close\r\n\r\n"
    );
    connection.write_all(head.as_bytes())?;
    let mut piece = vec![7; PIECE];
    let pieces = length / PIECE as u64;
    for number in 1..=pieces {
        if number == pieces {
            piece[PIECE - 1] = last;
        }
        connection.write_all(&piece)?;
    }
    answer(connection)
}

/// The most memory that the server has had at once, in bytes.
fn peak(address: SocketAddr) -> Outcome<f64> {
    let mut connection = TcpStream::connect(address)?;
    connection
        .write_all(b"GET /status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let status = answer(connection)?;
    let kib = status.lines().find_map(|line| {
        let peak = line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?;
        peak.parse::<f64>().ok()
    });
    Ok(kib.ok_or("the server does not say how much memory it has")? * 1024.0)
}

fn answer(mut connection: TcpStream) -> Outcome<String> {
    let mut received = Vec::new();
    connection.read_to_end(&mut received)?;
    let whole = message_length(&received)?.ok_or("an answer broke off")?;
    Ok(String::from_utf8(received[..whole].to_vec())?)
}

fn is(answer: &str, status: u16) -> bool {
    answer.starts_with(&format!("HTTP/1.1 {status} "))
}
