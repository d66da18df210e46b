//! `format: slack` and the like: the settings of adapters.

use std::collections::BTreeMap;

use super::field::Field;
use super::formats::MOST_PARTS;
use super::keys::{self, Form};
use super::node::Value;
use super::templates;
use crate::render::adapters::{Adapter, Kind, Known, named};
use crate::subscription::{Format, Setting};

/// The adapter that a `format` names, whatever else may be wrong with it.
pub fn meant(format: Field<'_>) -> Option<&'static Adapter> {
    match &format.node.value {
        Value::Scalar(scalar) => named(&scalar.text),
        Value::Map(entries) => entries.iter().find_map(|entry| named(&entry.key)),
        _ => None,
    }
}

/// By its name alone.
pub fn plain(adapter: &'static Adapter, field: Field<'_>) -> Option<Format> {
    let missing: Vec<_> = adapter
        .settings
        .iter()
        .filter(|known| known.needed)
        .collect();
    if missing.is_empty() {
        let template = adapter.with(Vec::new(), BTreeMap::new());
        return Some(Format::Template(Box::new(template)));
    }
    let names = missing.iter().map(|known| format!("`{}`", known.name));
    let shown = missing.iter().map(|known| format!("{}: ...", known.name));
    let name = adapter.name;
    field.note(
        format!(
            "format `{name}` needs {}",
            names.collect::<Vec<_>>().join(", ")
        ),
        format!(
            "write `{{ {name}: {{ {} }} }}`",
            shown.collect::<Vec<_>>().join(", ")
        ),
    );
    None
}

/// By its name with settings, which stand under it.
pub fn format(field: Field<'_>) -> Option<Format> {
    let adapter = named(field.key)?;
    let key = keys::FORMAT.keys.iter().find(|key| key.name == field.key);
    let section = key.and_then(|key| match &key.form {
        Form::Section(section) => Some(*section),
        _ => None,
    });
    let map = field.map(section.unwrap_or(&keys::NO_SETTINGS))?;
    let mut settings = Vec::new();
    let mut params = BTreeMap::new();
    let mut whole = true;
    for Known {
        name, kind, needed, ..
    } in adapter.settings
    {
        let given = match needed {
            true => map.need(name),
            false => map.take(name),
        };
        let Some(given) = given else {
            whole &= !needed;
            continue;
        };
        match kind {
            Kind::Secret => match given.text() {
                Some(text) => drop(params.insert((*name).into(), text.into())),
                None => whole = false,
            },
            Kind::Text => match templates::text(given) {
                Some(text) => settings.push(((*name).into(), Setting::Text(text))),
                None => whole = false,
            },
            Kind::Fields => {
                let entries = given.entries();
                if entries.len() > MOST_PARTS {
                    given.note_key(format!("more than {MOST_PARTS} of them"), None);
                }
                let fields = entries
                    .into_iter()
                    .filter_map(|entry| Some((entry.key.into(), templates::text(entry)?)));
                settings.push(((*name).into(), Setting::Fields(fields.collect())));
            }
        }
    }
    let template = adapter.with(settings, params);
    whole.then(|| Format::Template(Box::new(template)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, parse};
    use crate::render::adapters::ADAPTERS;
    use crate::subscription::{Answers, Endpoint, Rate, Scheme, Subscription, Uid};

    #[test]
    fn every_setting_has_a_key_and_every_key_is_a_setting() {
        for adapter in &ADAPTERS {
            let key = keys::FORMAT
                .keys
                .iter()
                .find(|key| key.name == adapter.name);
            let section = key.expect("a key of `format`").form.section();
            let keys = section.map_or(&[][..], |section| section.keys);
            let rows = keys.iter().map(|key| {
                let kind = match key.form {
                    Form::Map(_) => Kind::Fields,
                    _ => Kind::Text,
                };
                (key.name, kind, key.default == keys::MANDATORY)
            });
            let known = adapter.settings.iter().map(|known| {
                let kind = match known.kind {
                    Kind::Fields => Kind::Fields,
                    Kind::Text | Kind::Secret => Kind::Text,
                };
                (known.name, kind, known.needed)
            });
            assert_eq!(
                rows.collect::<Vec<_>>(),
                known.collect::<Vec<_>>(),
                "{}",
                adapter.name
            );
            let alone = keys::FORMATS.contains(&adapter.name);
            assert_eq!(alone, !adapter.needs_settings(), "{}", adapter.name);
            assert!(Format::NAMES.contains(&adapter.name));
        }
    }

    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn read(endpoint: &str, subscription: &str) -> Result<Config, String> {
        let text = format!(
            "brokers: {{ here: {{ embedded: {{}} }} }}
subscriptions: {{ a: {{ topics: [t], endpoint: {{ url: 'https://h/', {endpoint} }}{subscription} }} }}
"
        );
        parse(&text, "x", Path::new("."), &|_| None).map_err(|problems| {
            let shown = problems.list().iter().map(|problem| {
                let help = problem.help.as_deref().unwrap_or("-");
                format!("{} ({help})", problem.message)
            });
            shown.collect::<Vec<_>>().join("\n")
        })
    }

    fn endpoint(said: &str) -> Endpoint {
        let config = read(said, "").unwrap_or_else(|problems| panic!("{problems}"));
        Endpoint::clone(&config.endpoints["a"])
    }

    #[test]
    fn what_the_config_says_goes_before_the_adapter() {
        let per_second = |count| {
            Some(Rate {
                count,
                per: Duration::from_secs(1),
            })
        };
        let usual = endpoint("format: slack");
        assert_eq!((usual.rate, usual.signature), (per_second(1), Scheme::None));
        let own = endpoint(&format!(
            "format: {{ slack: {{}} }}, rate: 9/s, secret: {KEY}"
        ));
        assert_eq!((own.rate, own.signature), (per_second(9), Scheme::Standard));
        let around = read("format: slack", ", rate: 8/s").unwrap();
        assert_eq!(around.endpoints["a"].rate, per_second(8));
        assert_eq!(endpoint("signature: none, format: raw").rate, None);

        let answers = |retry: &str| -> Answers {
            let retry = format!(", retry: {{ {retry} }}");
            let config = read("format: slack", &retry).unwrap();
            let spec = config.subscriptions["a"].clone();
            let endpoint = config.endpoints["a"].clone();
            let subscription = Subscription::compile(Uid::of_config("a"), spec, endpoint);
            Answers::clone(&subscription.unwrap().answers)
        };
        let usual = named("slack").unwrap().answers();
        assert_eq!(answers(""), usual);
        let own = answers("disable: [], success: [2xx, 404]");
        assert_eq!(own.disable.to_string(), "");
        assert_eq!(own.success.to_string(), "2xx 404");
        assert_eq!(own.no_retry, usual.no_retry);
    }

    #[test]
    fn mistakes_in_settings_are_named() {
        let problems = |format: &str| read(&format!("format: {format}"), "").unwrap_err();
        insta::assert_snapshot!(problems("slak"), @r"
        `secret` is missing: signature `standard` needs one (make one with `echo whsec_$(openssl rand -base64 32)`, or say `signature: none`)
        `slak` is not a value of `format` (did you mean `slack`?)
        ");
        insta::assert_snapshot!(problems("pagerduty"), @"format `pagerduty` needs `routing_key` (write `{ pagerduty: { routing_key: ... } }`)");
        insta::assert_snapshot!(problems("{ trello: { api_key: k, list: '' } }"), @"`token` is missing (-)");
        insta::assert_snapshot!(problems("{ slack: { txet: x } }"), @"unknown key `txet` in `slack` (did you mean `text`?)");
        insta::assert_snapshot!(problems("{ slack: { text: '{{ dta.x }}' }, teams: {} }"), @"`format` has exactly one key, the name of a format (such as `{ xml: { root: order } }`)");
        insta::assert_snapshot!(problems("{ teams: { text: '{{ dta.x }}', facts: { a: '{{ b c }}', d: [] } } }"), @r"
        a name that templates do not know: `dta`; there are id, topic, type, time, source, tenant, headers, data, body, params, version (-)
        syntax error: unexpected identifier, expected end of variable block (-)
        `d` is text, not a list (-)
        ");
        insta::assert_snapshot!(problems("{ zapier: { text: x } }"), @"unknown key `text` in `zapier` (-)");
    }
}
