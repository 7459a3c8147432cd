//! A web service that labels texts with an adapter: POST a text to it, and a JSON object comes
//! back. One thread serves; a `Predictor` answers one request at a time, and several of them share
//! the model's memory.
//!
//! cargo run --release -p lora-drop --example serve -- models/minilm runs/reviews 127.0.0.1:8080
//! curl --data 'a fine film' http://127.0.0.1:8080

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use lora_drop::evaluate::Predictor;
use lora_drop::loaded::Arithmetic;
use lora_drop::{Error, Result};

/// Bytes of a request at most.
const MOST: usize = 1 << 20;

/// Answers a request on this connection.
pub fn answer(predictor: &mut Predictor, stream: &mut TcpStream) -> std::io::Result<()> {
    let (status, body) = match text(stream)? {
        Some(text) => match predictor.predict(&[(text, None)]) {
            Ok(found) => ("200 OK", serde_json::to_string(&found[0])?),
            Err(error) => {
                ("500 Internal Server Error", serde_json::json!({ "error": error.to_string() }).to_string())
            }
        },
        None => {
            ("400 Bad Request", serde_json::json!({ "error": "expected a text of up to 1 MiB" }).to_string())
        }
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// The request's body; None where there is none, or it is too long or no UTF-8.
fn text(stream: &TcpStream) -> std::io::Result<Option<String>> {
    let (mut reader, mut length) = (BufReader::new(stream), 0);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(MOST as u64).read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    if !(1..=MOST).contains(&length) {
        return Ok(None);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(String::from_utf8(body).ok())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, address] = &words[..] else {
        return Err(Error::Usage("usage: serve MODEL ADAPTER ADDRESS".to_string()));
    };
    let mut predictor = Predictor::open(model, Some(Path::new(adapter)), Arithmetic::default(), 0, None)?;
    let failed = |e| Error::io(Path::new(address), e);
    let listener = TcpListener::bind(address).map_err(failed)?;
    for stream in listener.incoming() {
        // A client that goes away ends its own request and no other.
        if let Err(error) = stream.and_then(|mut stream| answer(&mut predictor, &mut stream)) {
            eprintln!("{error}");
        }
    }
    Ok(())
}
