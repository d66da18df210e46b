//! The index: a trie over topic patterns, below each topic one over type patterns, below that the
//! sources.
//!
//! Segments are interned, and all edges are in one table keyed by node and segment, so a node is 24
//! bytes, however many children it has. A walk follows the exact edge, `*` and `#` from each
//! node; it reaches every node in as many ways as there are matching patterns above it, but enters
//! a `#` once only: the first arrival is the leftmost, and what a later one could take, the first
//! one takes too. So no set of patterns makes a walk explode.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use crate::subscription::{Pattern, Segment, segments};

/// What a leaf is found by.
pub(super) struct Key<'a> {
    pub topic: &'a Pattern,
    pub kind: Option<&'a Pattern>,
    pub source: Option<&'a str>,
}

/// One subscription, found by the `topic`th of its topics and, if types are indexed for it, the
/// `kind`th of its types.
pub(super) struct Leaf {
    pub subscription: u32,
    pub topic: u32,
    pub kind: Option<u32>,
}

/// A finished index.
pub(super) struct Index {
    tree: Tree,
    /// Grouped by node; a node's are at its `leaves`.
    leaves: Vec<Leaf>,
    leaves_of: Vec<Range<u32>>,
}

#[derive(Default)]
pub(super) struct Builder {
    tree: Tree,
    planted: Vec<(u32, Leaf)>,
}

struct Tree {
    nodes: Vec<Node>,
    edges: HashMap<u64, u32, BuildHasherDefault<Mixer>>,
    segments: HashMap<Box<str>, u32>,
    sources: HashMap<Box<str>, u32>,
}

/// Children other than exact ones; [`NONE`] where there is no such child.
struct Node {
    one: u32,
    any: u32,
    /// The root of the types that are asked for below this topic.
    kinds: u32,
    /// Has a child by an exact segment or `*`.
    inner: bool,
    /// A `#` below another `#`: can be reached in several ways.
    nested: bool,
}

const ROOT: u32 = 0;
/// No such node, or a segment that no pattern names.
const NONE: u32 = u32::MAX;
/// Sources are numbered from here, apart from segments.
const FIRST_SOURCE: u32 = 1 << 31;

impl Default for Tree {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
            edges: HashMap::default(),
            segments: HashMap::new(),
            sources: HashMap::new(),
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self {
            one: NONE,
            any: NONE,
            kinds: NONE,
            inner: false,
            nested: false,
        }
    }
}

impl Builder {
    pub(super) fn insert(&mut self, key: Key<'_>, leaf: Leaf) {
        let mut node = self.tree.grow(ROOT, key.topic);
        if let Some(kind) = key.kind {
            let mut root = self.tree.nodes[node as usize].kinds;
            if root == NONE {
                root = self.tree.add(Node::default());
                self.tree.nodes[node as usize].kinds = root;
            }
            node = self.tree.grow(root, kind);
        }
        if let Some(source) = key.source {
            let source = intern(&mut self.tree.sources, source, FIRST_SOURCE);
            node = self.tree.exact(node, source);
        }
        self.planted.push((node, leaf));
    }

    pub(super) fn finish(self) -> Index {
        let Self { tree, mut planted } = self;
        planted.sort_by_key(|(node, _)| *node);
        let mut leaves_of = vec![0..0; tree.nodes.len()];
        for (position, (node, _)) in (0..).zip(&planted) {
            let range: &mut Range<u32> = &mut leaves_of[*node as usize];
            if range.start == range.end {
                range.start = position;
            }
            range.end = position + 1;
        }
        Index {
            tree,
            leaves: planted.into_iter().map(|(_, leaf)| leaf).collect(),
            leaves_of,
        }
    }
}

impl Tree {
    /// The node of `pattern` below `root`, made if it is not there.
    fn grow(&mut self, root: u32, pattern: &Pattern) -> u32 {
        let mut node = root;
        let mut below_any = false;
        let mut last_was_any = false;
        for segment in pattern.segments() {
            let at = node as usize;
            node = match segment {
                // `#.#` is `#`.
                Segment::Any if last_was_any => node,
                Segment::Any if self.nodes[at].any != NONE => self.nodes[at].any,
                Segment::Any => {
                    let child = self.add(Node {
                        nested: below_any,
                        ..Node::default()
                    });
                    self.nodes[at].any = child;
                    child
                }
                Segment::One => {
                    self.nodes[at].inner = true;
                    if self.nodes[at].one == NONE {
                        self.nodes[at].one = self.add(Node::default());
                    }
                    self.nodes[at].one
                }
                Segment::Exact(text) => {
                    self.nodes[at].inner = true;
                    let segment = intern(&mut self.segments, text, 0);
                    self.exact(node, segment)
                }
            };
            last_was_any = segment == Segment::Any;
            below_any |= last_was_any;
        }
        node
    }

    fn exact(&mut self, node: u32, segment: u32) -> u32 {
        let next = self.nodes.len() as u32;
        let child = *self.edges.entry(edge(node, segment)).or_insert(next);
        if child == next {
            self.add(Node::default());
        }
        child
    }

    fn add(&mut self, node: Node) -> u32 {
        let number = u32::try_from(self.nodes.len())
            .ok()
            .filter(|number| *number < NONE)
            .expect("four thousand million patterns do not fit into memory");
        self.nodes.push(node);
        number
    }

    fn follow(&self, node: u32, segment: u32) -> Option<u32> {
        if segment == NONE {
            return None;
        }
        self.edges.get(&edge(node, segment)).copied()
    }

    fn number(&self, segment: &str) -> u32 {
        self.segments.get(segment).copied().unwrap_or(NONE)
    }
}

impl Index {
    /// Calls `found` with every leaf whose patterns match, each leaf once.
    pub(super) fn visit<'a>(
        &'a self,
        topic: &'a str,
        kind: &'a str,
        source: &str,
        found: impl FnMut(&'a Leaf),
    ) {
        let mut walk = Walk {
            index: self,
            topic: Path::of(topic, &self.tree),
            kind: None,
            kind_text: kind,
            source: self.tree.sources.get(source).copied().unwrap_or(NONE),
            entered: Vec::new(),
            found,
        };
        walk.at(ROOT, 0, Level::Topic);
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
    topic: Path,
    /// Looked up when the first topic with types below it is reached.
    kind: Option<Path>,
    kind_text: &'a str,
    source: u32,
    /// Nested `#` nodes that were entered. Stays empty, and so unallocated, where no pattern has
    /// two of them.
    entered: Vec<u32>,
    found: F,
}

impl<'a, F: FnMut(&'a Leaf)> Walk<'a, F> {
    /// `node` has been reached with the segments from `position` on still to be matched.
    fn at(&mut self, node: u32, position: usize, level: Level) {
        if position == self.path(level).len() {
            self.arrive(node, level);
        } else {
            self.step(node, position, level);
        }
        let any = self.node(node).any;
        if any != NONE {
            self.enter(any, position, level);
        }
    }

    fn step(&mut self, node: u32, position: usize, level: Level) {
        let segment = self.path(level)[position];
        if let Some(child) = self.index.tree.follow(node, segment) {
            self.at(child, position + 1, level);
        }
        let one = self.node(node).one;
        if one != NONE {
            self.at(one, position + 1, level);
        }
    }

    /// A `#`: takes all the rest, or any part of it before the patterns below.
    fn enter(&mut self, any: u32, position: usize, level: Level) {
        if self.node(any).nested {
            if self.entered.contains(&any) {
                return;
            }
            self.entered.push(any);
        }
        self.arrive(any, level);
        if self.node(any).inner {
            for from in position..self.path(level).len() {
                self.step(any, from, level);
            }
        }
    }

    /// The whole name has been matched at `node`.
    fn arrive(&mut self, node: u32, level: Level) {
        self.report(node);
        if let Some(below) = self.index.tree.follow(node, self.source) {
            self.report(below);
        }
        let kinds = self.node(node).kinds;
        if let (Level::Topic, true) = (level, kinds != NONE) {
            let Self { kind, index, .. } = self;
            kind.get_or_insert_with(|| Path::of(self.kind_text, &index.tree));
            self.at(kinds, 0, Level::Kind);
        }
    }

    fn report(&mut self, node: u32) {
        let index = self.index;
        let Range { start, end } = index.leaves_of[node as usize];
        for leaf in &index.leaves[start as usize..end as usize] {
            (self.found)(leaf);
        }
    }

    fn node(&self, node: u32) -> &'a Node {
        &self.index.tree.nodes[node as usize]
    }

    fn path(&self, level: Level) -> &[u32] {
        match level {
            Level::Topic => self.topic.segments(),
            Level::Kind => self.kind.as_ref().map_or(&[], Path::segments),
        }
    }
}

/// The interned segments of a name, on the stack unless there are many.
struct Path {
    few: [u32; 16],
    len: usize,
    many: Vec<u32>,
}

impl Path {
    fn of(name: &str, tree: &Tree) -> Self {
        let mut path = Self {
            few: [NONE; 16],
            len: 0,
            many: Vec::new(),
        };
        for segment in segments(name) {
            let number = tree.number(segment);
            match path.few.get_mut(path.len) {
                Some(place) => *place = number,
                None if path.many.is_empty() => {
                    path.many.extend_from_slice(&path.few);
                    path.many.push(number);
                }
                None => path.many.push(number),
            }
            path.len += 1;
        }
        path
    }

    fn segments(&self) -> &[u32] {
        self.few.get(..self.len).unwrap_or(&self.many)
    }
}

fn intern(table: &mut HashMap<Box<str>, u32>, text: &str, first: u32) -> u32 {
    if let Some(number) = table.get(text) {
        return *number;
    }
    let number = first + u32::try_from(table.len()).expect("fewer segments than memory");
    table.insert(text.into(), number);
    number
}

fn edge(node: u32, segment: u32) -> u64 {
    u64::from(node) << 32 | u64::from(segment)
}

/// Hashes edges. They are two numbers that we gave out ourselves, so one multiplication that
/// spreads them over all bits is enough, and a fifth of the default hasher's time.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
