//! The steps of a delivery, each in a function of its own, for callgrind to count.
//!
//! `benches/instructions` runs it under valgrind and compares the counts. Each `step_*` function runs
//! its step [`TIMES`] times; nothing outside of them is counted. `attempt` is a whole request over
//! loopback by the courier; who answers is another process, and not counted.

mod fixtures;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fixtures::steps::{Content, Decide, Render, Route, Settle, Sign};
use hookbridge::deliver::{Access, AddressPolicy, Courier, Signer};
use hookbridge::event::EventId;
use hookbridge::outgoing::Outgoing;
use hookbridge::subscription::{Scheme, Secret};
use tokio::runtime::{Builder, Runtime};

const TIMES: usize = 200;

/// Functions that callgrind can be told of by name.
macro_rules! steps {
    ($($name:ident($step:ident: $type:ty) $run:block)*) => {
        $(
            #[inline(never)]
            #[unsafe(no_mangle)]
            extern "C" fn $name($step: $type) {
                for _ in 0..TIMES $run
            }
        )*
    };
}

steps! {
    step_route(step: &Route) { step.run(); }
    step_filter(step: &Content) { step.run(&step.body()); }
    step_render(step: &Render) { std::hint::black_box(step.run()); }
    step_sign(step: &mut Sign) { step.run(); }
    step_decide(step: &Decide) { step.run(); }
    step_watermark(step: &mut Settle) { step.run(); }
    step_attempt(step: &Attempts) { step.run(); }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["answer"] => answer(),
        ["steps"] => steps(),
        _ => println!("usage: benches/instructions"),
    }
}

/// How often each step runs is printed first.
fn steps() {
    println!("{TIMES}");
    step_route(&Route::new(1));
    step_filter(&Content::new());
    step_render(&Render::new());
    step_sign(&mut Sign::standard());
    step_decide(&Decide::new(200));
    step_watermark(&mut Settle::new());
    let attempts = Attempts::new();
    // The connection is there already, as it mostly is.
    attempts.run();
    step_attempt(&attempts);
}

/// Requests one after the other to somebody who answers at once.
struct Attempts {
    runtime: Runtime,
    courier: Arc<Courier>,
    signer: Signer,
    id: EventId,
    request: Outgoing,
    server: std::process::Child,
}

impl Attempts {
    fn new() -> Self {
        let mut server = Command::new(std::env::current_exe().expect("this program"))
            .arg("answer")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the other side starts");
        let mut port = String::new();
        let mut told = BufReader::new(server.stdout.take().expect("a pipe"));
        told.read_line(&mut port).expect("a port");
        let url = format!("http://127.0.0.1:{}/in", port.trim());
        let mut request = Render::new().run();
        request.url = Arc::new(url.parse().expect("a URL"));
        let policy = AddressPolicy {
            allow_http: true,
            allow_networks: vec!["127.0.0.0/8".parse().expect("a network")],
        };
        let runtime = Builder::new_current_thread().enable_all().build();
        let secrets = [Secret::new(fixtures::SECRET)];
        Self {
            runtime: runtime.expect("a runtime"),
            courier: Courier::new(policy),
            signer: Signer::new(&Scheme::Standard, &secrets).expect("a good secret"),
            id: EventId::kept("e1").expect("a good id"),
            request,
            server,
        }
    }

    fn run(&self) {
        let request = self.request.clone();
        let access = Access {
            tls: None,
            auth: None,
            connect_timeout: Duration::from_secs(60),
        };
        let attempt = self
            .courier
            .attempt(request, &self.signer, &self.id, access);
        let attempt = self.runtime.block_on(attempt);
        assert!(attempt.outcome.is_success(), "{attempt:?}");
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Answers each request of one connection with 200.
fn answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("an address").port());
    let (mut stream, _) = listener.accept().expect("a connection");
    let (mut bytes, mut buffer) = (Vec::<u8>::new(), [0; 8192]);
    let body = fixtures::steps::BODY.len();
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        bytes.extend(&buffer[..read]);
        let head = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        if head.is_some_and(|head| bytes.len() == head + 4 + body) {
            bytes.clear();
            let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(whole).expect("written");
        }
    }
}
