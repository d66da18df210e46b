//! `handshake:` of an endpoint.

use http::HeaderValue;

use super::field::Field;
use super::keys;
use crate::subscription::{Challenge, Handshake, Secret};

/// Reads what an endpoint is asked; `secrets` are its own. `None`: nothing, or there is a problem.
pub fn read(field: Field<'_>, secrets: &[Secret]) -> Option<Handshake> {
    let handshake = match field.is_map() {
        true => with_settings(field)?,
        false => by_name(field.one_of(&Handshake::NAMES)?)?,
    };
    if handshake == Handshake::HookSecret {
        match secrets.first().map(Secret::expose) {
            None => field.note(
                "`hook-secret` sends the endpoint's secret, and there is none",
                "give it a `secret`, which `signature: asana` signs with".to_owned(),
            ),
            Some(secret) if HeaderValue::from_str(secret).is_err() || !secret.is_ascii() => {
                field.note(
                    "`hook-secret` sends the secret in a header: only ASCII fits",
                    None,
                );
            }
            Some(_) => {}
        }
    }
    Some(handshake)
}

fn by_name(name: &str) -> Option<Handshake> {
    match name {
        "options" => Some(Handshake::Options {
            origin: Handshake::ORIGIN.to_owned(),
        }),
        "challenge" => Some(Handshake::Challenge(Challenge::default())),
        "hook-secret" => Some(Handshake::HookSecret),
        _ => None,
    }
}

fn with_settings(field: Field<'_>) -> Option<Handshake> {
    let map = field.map(&keys::HANDSHAKE)?;
    let names = || keys::HANDSHAKE.keys.iter().map(|key| key.name);
    let given: Vec<_> = names().filter_map(|name| map.take(name)).collect();
    let [settings] = given[..] else {
        if !map.means_one_of(&names().collect::<Vec<_>>()) {
            field.note_key(
                "`handshake` has exactly one key, the kind of handshake",
                "such as `{ options: { origin: events.example.com } }`".to_owned(),
            );
        }
        return None;
    };
    match settings.key {
        "options" => options(settings),
        "challenge" => challenge(settings),
        name => {
            settings.map(&keys::NO_SETTINGS)?;
            by_name(name)
        }
    }
}

fn options(settings: Field<'_>) -> Option<Handshake> {
    let map = settings.map(&keys::OPTIONS)?;
    let Some(field) = map.take("origin") else {
        return by_name("options");
    };
    let origin = field.text()?;
    if !origin.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("{} cannot be an origin", field.shown());
        field.note(message, "such as `events.example.com`".to_owned());
        return None;
    }
    Some(Handshake::Options {
        origin: origin.to_owned(),
    })
}

fn challenge(settings: Field<'_>) -> Option<Handshake> {
    let map = settings.map(&keys::CHALLENGE)?;
    let text = |key| map.take(key).and_then(|field: Field<'_>| field.text());
    let usual = Challenge::default();
    let field = text("field").map_or(usual.field, str::to_owned);
    if let Some(wrong) = map
        .take("field")
        .filter(|_| ["type", "token"].contains(&&*field))
    {
        wrong.note("the challenge needs a member of its own", None);
    }
    Some(Handshake::Challenge(Challenge {
        field,
        kind: text("type").map_or(usual.kind, str::to_owned),
        token: text("token").map(Secret::new),
    }))
}
