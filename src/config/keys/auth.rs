//! The keys of `auth:`.

use super::{Form, MANDATORY, Section, key};

pub static AUTH: Section = Section {
    name: "auth",
    keys: &[
        key(
            "bearer",
            Form::Text,
            "",
            "A token, sent as `authorization: Bearer ...`.",
        ),
        key("basic", Form::Section(&BASIC), "", "A user and a password."),
        key(
            "api_key",
            Form::Section(&API_KEY),
            "",
            "A key in a header or in the query.",
        ),
        key(
            "oauth2",
            Form::Section(&OAUTH2),
            "",
            "OAuth 2.0 client credentials: tokens are asked for, kept while they last, and asked for again after a 401.",
        ),
    ],
};

pub static BASIC: Section = Section {
    name: "basic",
    keys: &[
        key("user", Form::Text, MANDATORY, "Without a colon."),
        key("password", Form::Text, MANDATORY, ""),
    ],
};

pub static API_KEY: Section = Section {
    name: "api_key",
    keys: &[
        key(
            "header",
            Form::Text,
            "",
            "The header that has it; this or `query`.",
        ),
        key(
            "query",
            Form::Text,
            "",
            "The field of the query that has it. Signatures over the URL sign it too.",
        ),
        key("key", Form::Text, MANDATORY, "The key itself."),
    ],
};

pub const CREDENTIALS: [&str; 2] = ["header", "body"];

pub static OAUTH2: Section = Section {
    name: "oauth2",
    keys: &[
        key(
            "token_url",
            Form::Text,
            MANDATORY,
            "The token endpoint. The rules for URLs of endpoints hold for it.",
        ),
        key("client_id", Form::Text, MANDATORY, ""),
        key("client_secret", Form::Text, MANDATORY, ""),
        key("scope", Form::Text, "none", "Scopes, with spaces between."),
        key(
            "audience",
            Form::Text,
            "none",
            "Where the server wants to know what the token is for.",
        ),
        key(
            "credentials",
            Form::OneOf(&CREDENTIALS),
            "`header`",
            "Where the token request has id and secret: basic authentication, or the form.",
        ),
    ],
};
