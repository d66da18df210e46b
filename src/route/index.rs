//! The index: a trie over topic patterns, below each topic one over type patterns, below that the
//! sources. Each tenant has a trie of its own beside that of the operator, so that an event meets
//! the patterns of its own tenant only.
//!
//! As long as only one pattern goes on from a node, no nodes are made for the segments that are
//! left: the node stands for this rest itself, and is cut when a second pattern comes. So among
//! many subscriptions with topics of their own a walk comes to the one in two or three steps.
//!
//! A walk follows the exact edge, `*` and `#` from each node. Without a `#` above it a node is
//! reached in one way only. Below a `#` it is reached in as many ways as there are matching
//! patterns above it (so no node there stands for a rest), but the walk enters a `#` once only: the
//! first arrival is the leftmost, and what a later one could take, the first one takes too. So no
//! set of patterns makes a walk explode.

use std::str;

use crate::subscription::{Pattern, Segment, fits, segments};

use super::nodes::{self, Edge, Node, Nodes};

/// What a leaf is found by.
pub(super) struct Key<'a> {
    /// Those of a tenant are below a root of their own.
    pub tenant: Option<&'a str>,
    pub topic: &'a Pattern,
    pub kind: Option<&'a Pattern>,
    pub source: Option<&'a str>,
}

/// One subscription, found by the `topic`th of its topics and, if types are indexed for it, the
/// `kind`th of its types.
#[derive(Clone, Copy)]
pub(super) struct Leaf {
    pub subscription: u32,
    pub topic: u32,
    pub kind: Option<u8>,
    /// Whoever is found by it matches: nothing is left to be looked at.
    pub settled: bool,
}

/// The leaves of a node.
#[derive(Clone, Copy)]
pub(super) enum Leaves {
    None,
    One(Leaf),
    /// A range of the index's leaves.
    Many {
        from: u32,
        to: u32,
    },
}

/// A finished index.
pub(super) struct Index {
    nodes: Nodes,
    /// Those that are not alone at their node, grouped by node.
    leaves: Box<[Leaf]>,
}

pub(super) struct Builder {
    nodes: Nodes,
    /// Leaves by the ids of their nodes.
    planted: Vec<(u32, Leaf)>,
    /// How many ids were given out.
    ids: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            nodes: Nodes::new(),
            planted: Vec::new(),
            ids: 1,
        }
    }
}

impl Builder {
    pub(super) fn insert(&mut self, key: Key<'_>, leaf: Leaf) {
        let mut root = self.nodes.place(nodes::Key::ROOT).expect("the root");
        if let Some(tenant) = key.tenant {
            (root, _) = self.follow_or_make(root, Edge::Tenant, tenant.as_bytes(), None);
        }
        let mut at = self.grow(root, key.topic.as_str());
        if let Some(kind) = key.kind {
            let (root, _) = self.follow_or_make(at, Edge::Kinds, b"", None);
            at = self.grow(root, kind.as_str());
        }
        if let Some(source) = key.source {
            (at, _) = self.follow_or_make(at, Edge::Source, source.as_bytes(), None);
        }
        self.planted.push((self.nodes.at(at).id, leaf));
    }

    pub(super) fn finish(self) -> Index {
        let Self {
            mut nodes,
            mut planted,
            ids,
        } = self;
        planted.sort_by_key(|(id, _)| *id);
        let mut leaves_of = vec![Leaves::None; ids as usize];
        let mut leaves = Vec::new();
        for group in planted.chunk_by(|(one, _), (other, _)| one == other) {
            leaves_of[group[0].0 as usize] = if let [(_, leaf)] = group {
                Leaves::One(*leaf)
            } else {
                let from = number(leaves.len());
                leaves.extend(group.iter().map(|(_, leaf)| *leaf));
                let to = number(leaves.len());
                Leaves::Many { from, to }
            };
        }
        for node in nodes.all() {
            node.leaves = leaves_of[node.id as usize];
        }
        nodes.shrink();
        Index {
            nodes,
            leaves: leaves.into(),
        }
    }

    /// Where the node of `pattern` below `root` is; makes it if there is none.
    fn grow(&mut self, root: usize, pattern: &str) -> usize {
        let mut at = root;
        let mut below_any = false;
        let mut last_was_any = false;
        let mut left = Some(pattern);
        while let Some(pattern) = left {
            let (segment, rest) = match pattern.split_once('.') {
                Some((segment, rest)) => (segment, Some(rest)),
                None => (pattern, None),
            };
            left = rest;
            let (edge, text) = match Segment::of(segment) {
                // `#.#` is `#`.
                Segment::Any if last_was_any => continue,
                Segment::Any => (Edge::Any, &b""[..]),
                Segment::One => (Edge::One, &b""[..]),
                Segment::Exact(text) => (Edge::Exact, text.as_bytes()),
            };
            last_was_any = edge == Edge::Any;
            let nested = last_was_any && below_any;
            below_any |= last_was_any;
            let (child, made) = self.follow_or_make(at, edge, text, rest.filter(|_| !below_any));
            at = child;
            if made {
                self.nodes.at(at).nested = nested;
            }
            match self.nodes.at(at).rest() {
                None => {}
                same if same == rest.map(str::as_bytes) => return at,
                Some(_) => at = self.cut(at),
            }
        }
        at
    }

    /// The child by an edge, and whether it had to be made; it stands for `rest` then.
    fn follow_or_make(
        &mut self,
        at: usize,
        edge: Edge,
        text: &[u8],
        rest: Option<&str>,
    ) -> (usize, bool) {
        let parent = self.nodes.at(at).id;
        let key = nodes::Key { parent, edge, text };
        if let Some(place) = self.nodes.place(key) {
            return (place, false);
        }
        self.nodes.at(at).lead_on(edge);
        let id = self.give_id();
        (self.nodes.insert(key, rest, id), true)
    }

    /// Makes nodes of the rest that the node at `at` stands for. What was below it, and its leaves,
    /// are where the rest ends then.
    fn cut(&mut self, at: usize) -> usize {
        let id = self.give_id();
        let node = self.nodes.at(at);
        let rest = node.rest().unwrap_or_default().to_vec();
        let rest = String::from_utf8(rest).expect("a part of a pattern");
        let below = node.cut(id);
        let nodes::Key { parent, edge, text } = node.key();
        let text = text.to_vec();
        let end = self.grow(at, &rest);
        self.nodes.at(end).take_over(below);
        let text = &text[..];
        let it = nodes::Key { parent, edge, text };
        self.nodes.place(it).expect("it was there before")
    }

    fn give_id(&mut self) -> u32 {
        self.ids += 1;
        self.ids - 1
    }
}

impl Index {
    /// Calls `found` with every leaf whose patterns match, each leaf once.
    pub(super) fn visit<'a>(
        &'a self,
        topic: &'a str,
        kind: &'a str,
        source: &'a str,
        tenant: Option<&'a str>,
        found: impl FnMut(&'a Leaf),
    ) {
        let mut walk = Walk {
            index: self,
            topic: Path::of(topic),
            kind: None,
            kind_text: kind,
            source,
            entered: Vec::new(),
            found,
        };
        if let Some(root) = self.nodes.get(nodes::Key::ROOT) {
            walk.at(root, 0, Level::Topic);
            if let Some(tenant) = tenant
                && let Some(root) = walk.child(root, Edge::Tenant, tenant.as_bytes())
            {
                walk.at(root, 0, Level::Topic);
            }
        }
    }
}

/// Which of the event's two names is being matched.
#[derive(Clone, Copy)]
enum Level {
    Topic,
    Kind,
}

/// One question being answered.
struct Walk<'a, F> {
    index: &'a Index,
    topic: Path<'a>,
    /// Split when the first topic with types below it is reached.
    kind: Option<Path<'a>>,
    kind_text: &'a str,
    source: &'a str,
    /// Nested `#` nodes that were entered. Stays empty, and so unallocated, where no pattern has
    /// two of them.
    entered: Vec<u32>,
    found: F,
}

impl<'a, F: FnMut(&'a Leaf)> Walk<'a, F> {
    /// `node` has been reached with the segments from `position` on still to be matched.
    fn at(&mut self, node: &'a Node, position: usize, level: Level) {
        if let Some(rest) = node.rest() {
            if self.path(level).goes_on(position, rest, node.wild) {
                self.arrive(node, level);
            }
            return;
        }
        if position == self.path(level).len {
            self.arrive(node, level);
        } else {
            self.step(node, position, level);
        }
        if let Some(any) = self.child(node, Edge::Any, b"") {
            self.enter(any, position, level);
        }
    }

    fn step(&mut self, node: &'a Node, position: usize, level: Level) {
        if node.has(Edge::Exact) {
            let segment = self.path(level).segment(position);
            if let Some(child) = self.child(node, Edge::Exact, segment) {
                self.at(child, position + 1, level);
            }
        }
        if let Some(one) = self.child(node, Edge::One, b"") {
            self.at(one, position + 1, level);
        }
    }

    /// A `#`: takes all the rest, or any part of it before the patterns below.
    fn enter(&mut self, any: &'a Node, position: usize, level: Level) {
        if any.nested {
            if self.entered.contains(&any.id) {
                return;
            }
            self.entered.push(any.id);
        }
        self.arrive(any, level);
        if any.is_inner() {
            for from in position..self.path(level).len {
                self.step(any, from, level);
            }
        }
    }

    /// The whole name has been matched at `node`.
    fn arrive(&mut self, node: &'a Node, level: Level) {
        self.report(node);
        if let Some(below) = self.child(node, Edge::Source, self.source.as_bytes()) {
            self.report(below);
        }
        if let (Level::Topic, Some(kinds)) = (level, self.child(node, Edge::Kinds, b"")) {
            self.kind.get_or_insert_with(|| Path::of(self.kind_text));
            self.at(kinds, 0, Level::Kind);
        }
    }

    fn report(&mut self, node: &'a Node) {
        let leaves = match &node.leaves {
            Leaves::None => return,
            Leaves::One(leaf) => std::slice::from_ref(leaf),
            Leaves::Many { from, to } => &self.index.leaves[*from as usize..*to as usize],
        };
        leaves.iter().for_each(&mut self.found);
    }

    fn child(&self, node: &Node, edge: Edge, text: &[u8]) -> Option<&'a Node> {
        let parent = node.id;
        let key = nodes::Key { parent, edge, text };
        node.has(edge).then(|| self.index.nodes.get(key)).flatten()
    }

    fn path(&self, level: Level) -> &Path<'a> {
        match (level, &self.kind) {
            (Level::Kind, Some(kind)) => kind,
            _ => &self.topic,
        }
    }
}

/// A name and where its segments begin, on the stack unless there are many.
struct Path<'a> {
    name: &'a str,
    few: [usize; 16],
    many: Vec<usize>,
    len: usize,
}

impl<'a> Path<'a> {
    fn of(name: &'a str) -> Self {
        let mut path = Self {
            name,
            few: [0; 16],
            many: Vec::new(),
            len: 0,
        };
        let mut begin = 0;
        for segment in segments(name) {
            match path.few.get_mut(path.len) {
                Some(place) => *place = begin,
                None => path.many.push(begin),
            }
            begin += segment.len() + 1;
            path.len += 1;
        }
        path
    }

    fn segment(&self, position: usize) -> &'a [u8] {
        let begin = self.begin(position);
        let end = match position + 1 {
            next if next == self.len => self.name.len(),
            next => self.begin(next) - 1,
        };
        &self.name.as_bytes()[begin..end]
    }

    /// Whether the segments from `position` on match `rest`, a pattern.
    fn goes_on(&self, position: usize, rest: &[u8], wild: bool) -> bool {
        if wild {
            let rest = str::from_utf8(rest).expect("a part of a pattern");
            let rest = rest.split('.').map(Segment::of);
            return fits(rest, segments(self.name).skip(position));
        }
        position < self.len && &self.name.as_bytes()[self.begin(position)..] == rest
    }

    fn begin(&self, position: usize) -> usize {
        match self.few.get(position) {
            Some(begin) => *begin,
            None => self.many[position - self.few.len()],
        }
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).expect("four thousand million leaves do not fit into memory")
}
