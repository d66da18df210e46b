//! `hookbridge listen` as the receiver of our own courier.

use std::net::SocketAddr;

use hookbridge::attempt::Attempt;
use hookbridge::cli::listen::{Args, DEMO_SECRET, Script, Tally, serve};
use hookbridge::deliver::Signer;
use hookbridge::event::EventId;
use hookbridge::subscription::{Scheme, Secret};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::deliver_http::{courier, plain, post};

const ED25519: &str =
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
const OTHER_ED25519: &str = "whsk_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

struct Listening {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<anyhow::Result<Tally>>,
}

async fn listen(secrets: &[&str], answer: &str) -> Listening {
    listen_for(None, secrets, answer).await
}

async fn listen_for(signature: Option<Scheme>, secrets: &[&str], answer: &str) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let args = Args {
        listen: address,
        signature,
        url: None,
        secrets: secrets.iter().map(|s| (*s).to_owned()).collect(),
        answer: Script::parse(answer).unwrap(),
        quiet: true,
        json: false,
    };
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(serve(listener, args, async move {
        let _ = stopped.await;
    }));
    Listening {
        address,
        stop,
        ended,
    }
}

impl Listening {
    async fn attempt(&self, scheme: Scheme, secret: &str) -> Attempt {
        let signer = Signer::new(&scheme, &[Secret::new(secret)]).unwrap();
        let id = EventId::kept("msg_1").unwrap();
        let request = post(&format!("http://{}/any/path", self.address));
        courier().attempt(request, &signer, &id, plain()).await
    }

    async fn end(self) -> Tally {
        self.stop.send(()).unwrap();
        self.ended.await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn what_we_sign_is_verified_and_what_we_do_not_is_refused() {
    let listening = listen(&[], "204").await;
    let good = listening.attempt(Scheme::Standard, DEMO_SECRET).await;
    assert_eq!(good.outcome.label(), "204");
    let wrong = listening.attempt(Scheme::Standard, OTHER).await;
    assert_eq!(wrong.outcome.label(), "401");
    let unsigned = listening.attempt(Scheme::None, DEMO_SECRET).await;
    assert_eq!(unsigned.outcome.label(), "401");
    let tally = listening.end().await;
    assert_eq!((tally.received, tally.verified), (3, 1));
}

#[tokio::test]
async fn several_secrets_of_both_kinds() {
    let listening = listen(&[OTHER, DEMO_SECRET, ED25519], "204").await;
    for (scheme, secret) in [
        (Scheme::Standard, OTHER),
        (Scheme::Standard, DEMO_SECRET),
        (Scheme::StandardEd25519, ED25519),
    ] {
        let attempt = listening.attempt(scheme, secret).await;
        assert!(attempt.outcome.is_success(), "{attempt:?}");
    }
    assert_eq!(listening.end().await.verified, 3);
}

#[tokio::test]
async fn a_script_of_answers() {
    let listening = listen(&[], "500x2,200").await;
    let mut answers = Vec::new();
    for _ in 0..4 {
        let attempt = listening.attempt(Scheme::Standard, DEMO_SECRET).await;
        answers.push(attempt.outcome.label());
    }
    assert_eq!(answers, ["500", "500", "200", "500"]);
}

#[tokio::test]
async fn every_scheme_is_verified_when_it_is_asked_for() {
    for name in Scheme::NAMES {
        let Some(scheme) = Scheme::from_name(name).filter(Scheme::is_signed) else {
            continue;
        };
        let (right, wrong) = match name {
            "standard" | "svix" => (DEMO_SECRET, OTHER),
            "standard-ed25519" => (ED25519, OTHER_ED25519),
            _ => ("0123456789abcdef", "0123456789abcdeg"),
        };
        let listening = listen_for(Some(scheme.clone()), &[right], "204").await;
        let good = listening.attempt(scheme.clone(), right).await;
        // Mailchimp sends nothing but forms, and this is none.
        let expected = if name == "mailchimp" { "401" } else { "204" };
        assert_eq!(good.outcome.label(), expected, "{name}");
        let bad = listening.attempt(scheme, wrong).await;
        assert_eq!(bad.outcome.label(), "401", "{name}");
        listening.end().await;
    }
}
