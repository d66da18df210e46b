//! Texts that are templates: compiled once, so that a mistake in one is placed where it is written.

use super::field::Field;
use super::node::{Span, Value};
use crate::render::{TemplateProblem, check_template};
use crate::subscription::TemplateText;

/// The template that is the value of `field`.
pub fn text(field: Field<'_>) -> Option<TemplateText> {
    let text = field.text_or_empty()?;
    match check_template(text) {
        Ok(()) => Some(TemplateText {
            name: field.key.into(),
            text: text.into(),
        }),
        Err(problem) if field.is_substituted() => {
            // What was put in is not shown.
            let column = column(text, &problem);
            let place = format!("line {}, column {column}", problem.line);
            let message = format!("{} at {place} of {}", problem.kind, field.shown());
            field.note(message, None);
            None
        }
        Err(problem) => {
            let span = place(field, text, &problem);
            field.notes.note(span, said(&problem), None);
            None
        }
    }
}

/// From 1, in characters.
fn column(text: &str, problem: &TemplateProblem) -> usize {
    let start = problem.range.as_ref().map_or(0, |range| range.start);
    let before = &text[..text.floor_char_boundary(start.min(text.len()))];
    let line = before.rfind('\n').map_or(0, |at| at + 1);
    before[line..].chars().count() + 1
}

fn said(problem: &TemplateProblem) -> String {
    match &problem.detail {
        Some(detail) => format!("{}: {detail}", problem.kind),
        None => problem.kind.clone(),
    }
}

/// Where in the config the mistake is: the text may stand there as it is, or as a block, indented.
/// The whole value where it is written in yet another way.
fn place(field: Field<'_>, text: &str, problem: &TemplateProblem) -> Span {
    let whole = field.span();
    let Value::Scalar(_) = &field.node.value else {
        return whole;
    };
    let range = problem.range.clone().unwrap_or(0..0);
    let offset = text.floor_char_boundary(range.start.min(text.len()));
    let length = range.len().max(1);
    let file = field.notes.text;
    let span = |start: usize| Span {
        start: file.floor_char_boundary(start.min(file.len())),
        end: file.ceil_char_boundary((start + length).min(file.len())),
    };
    let Some(written) = file.get(whole.start..whole.end) else {
        return whole;
    };
    if let Some(at) = written.find(text).filter(|_| !text.is_empty()) {
        return span(whole.start + at + offset);
    }
    let before = &text[..offset];
    let number = before.matches('\n').count();
    let column = offset - before.rfind('\n').map_or(0, |at| at + 1);
    let Some(line) = text.lines().nth(number).filter(|line| !line.is_empty()) else {
        return whole;
    };
    // The block's first line may be that of its `|`.
    let mut at = whole.start;
    for (index, written) in file[whole.start..].split_inclusive('\n').enumerate() {
        if (number..=number + 1).contains(&index)
            && let Some(found) = written.find(line)
        {
            return span(at + found + column);
        }
        if index > number + 1 {
            break;
        }
        at += written.len();
    }
    whole
}
