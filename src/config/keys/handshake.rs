//! The keys of `handshake:` where it is a map: one for each kind, with what of it can be set.

use super::{Form, Section, key};

pub static HANDSHAKE: Section = Section {
    name: "handshake",
    keys: &[
        key(
            "options",
            Form::Section(&OPTIONS),
            "",
            "`OPTIONS` with `WebHook-Request-Origin`, as CloudEvents' webhooks say. A `WebHook-Allowed-Rate` in the answer is kept to.",
        ),
        key(
            "challenge",
            Form::Section(&CHALLENGE),
            "",
            "A signed POST of JSON with a challenge, as Slack's `url_verification`, which has to come back as text or JSON.",
        ),
        key(
            "hook-secret",
            Form::Empty,
            "",
            "A POST with the newest secret in `X-Hook-Secret`, as Asana's, which has to come back.",
        ),
    ],
};

pub static OPTIONS: Section = Section {
    name: "options_handshake",
    keys: &[key(
        "origin",
        Form::Text,
        "`hookbridge`",
        "What names us, a host's name as a rule.",
    )],
};

pub static CHALLENGE: Section = Section {
    name: "challenge_handshake",
    keys: &[
        key(
            "field",
            Form::Text,
            "`challenge`",
            "The member that carries the challenge, there and back.",
        ),
        key(
            "type",
            Form::Text,
            "`url_verification`",
            "What the member `type` says.",
        ),
        key("token", Form::Text, "none", "What the member `token` says."),
    ],
};
