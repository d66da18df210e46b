//! The nodes of the index, all in one hash table: each is found by its parent, the kind of the edge
//! that leads to it, and the text on this edge.
//!
//! A node is one line of the cache with all that a walk asks of it, its text and its only leaf
//! included, so that a step costs one access to memory. Texts are always compared, so nodes are
//! never taken for each other.

use super::index::Leaves;
use super::keyed::{Keyed, home};

/// What leads to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Edge {
    /// From nowhere, to the root of the topics.
    Topics,
    /// To the root of the types that are asked for below a topic.
    Kinds,
    Exact,
    /// `*`.
    One,
    /// `#`.
    Any,
    Source,
    /// From the root of the topics to that of a tenant's.
    Tenant,
}

impl Edge {
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// What a node is found by.
#[derive(Clone, Copy)]
pub(super) struct Key<'a> {
    /// The parent's id.
    pub parent: u32,
    pub edge: Edge,
    /// The segment of an exact edge, the name of a source; empty for the others.
    pub text: &'a [u8],
}

impl Key<'static> {
    pub(super) const ROOT: Self = Self {
        parent: u32::MAX,
        edge: Edge::Topics,
        text: b"",
    };
}

#[derive(Clone)]
#[repr(align(64))]
pub(super) struct Node {
    /// The text on the edge. If the node stands for the rest of a pattern, a dot and the rest.
    text: Text,
    pub leaves: Leaves,
    /// Of this node among the parents of others.
    pub id: u32,
    parent: u32,
    hash: u32,
    key_bytes: u32,
    edge: Edge,
    /// A bit for each kind of edge that leads on from here.
    edges: u8,
    /// A `#` below another `#`: can be reached in several ways.
    pub nested: bool,
    /// Wildcards are in the rest.
    pub wild: bool,
}

const _: () = assert!(size_of::<Node>() == 64);

/// What a node that stands for a rest gives to the one where this rest ends.
pub(super) struct Below {
    id: u32,
    edges: u8,
}

impl Node {
    const VACANT: Self = Self {
        text: Text::EMPTY,
        leaves: Leaves::None,
        id: u32::MAX,
        parent: 0,
        hash: 0,
        key_bytes: 0,
        edge: Edge::Topics,
        edges: 0,
        nested: false,
        wild: false,
    };

    pub(super) fn has(&self, edge: Edge) -> bool {
        self.edges & edge.bit() != 0
    }

    /// Has a child that takes exactly one segment.
    pub(super) fn is_inner(&self) -> bool {
        self.edges & (Edge::Exact.bit() | Edge::One.bit()) != 0
    }

    pub(super) fn lead_on(&mut self, edge: Edge) {
        self.edges |= edge.bit();
    }

    /// The pattern that the node stands for below its edge.
    pub(super) fn rest(&self) -> Option<&[u8]> {
        self.text.bytes().get(self.key_bytes as usize + 1..)
    }

    pub(super) fn key(&self) -> Key<'_> {
        Key {
            parent: self.parent,
            edge: self.edge,
            text: &self.text.bytes()[..self.key_bytes as usize],
        }
    }

    /// Leaves only its edge to the node, which goes on as `id`.
    pub(super) fn cut(&mut self, id: u32) -> Below {
        self.text = Text::new(self.key().text, None);
        Below {
            id: std::mem::replace(&mut self.id, id),
            edges: std::mem::take(&mut self.edges),
        }
    }

    pub(super) fn take_over(&mut self, below: Below) {
        self.id = below.id;
        self.edges |= below.edges;
    }

    fn is_vacant(&self) -> bool {
        self.id == Self::VACANT.id
    }

    fn is(&self, hash: u32, key: Key<'_>) -> bool {
        self.hash == hash
            && self.parent == key.parent
            && self.edge == key.edge
            && self.key().text == key.text
    }
}

/// In the node, unless it is long.
#[derive(Clone)]
enum Text {
    Short { bytes: [u8; 30], len: u8 },
    Long(Box<[u8]>),
}

impl Text {
    const EMPTY: Self = Self::Short {
        bytes: [0; 30],
        len: 0,
    };

    fn new(key: &[u8], rest: Option<&str>) -> Self {
        let parts: [&[u8]; 3] = match rest {
            Some(rest) => [key, b".", rest.as_bytes()],
            None => [key, b"", b""],
        };
        let len = parts.iter().map(|part| part.len()).sum();
        let mut bytes = [0; 30];
        let Some(mut room) = bytes.get_mut(..len) else {
            return Self::Long(parts.concat().into());
        };
        for part in parts {
            let (place, after) = room.split_at_mut(part.len());
            place.copy_from_slice(part);
            room = after;
        }
        let len = len as u8;
        Self::Short { bytes, len }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short { bytes, len } => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

/// The table.
pub(super) struct Nodes {
    places: Box<[Node]>,
    occupied: usize,
    keyed: Keyed,
}

impl Nodes {
    /// With the root, whose id is 0, as its only node.
    pub(super) fn new() -> Self {
        let mut this = Self {
            places: vec![Node::VACANT; 4].into(),
            occupied: 0,
            keyed: Keyed::new(),
        };
        this.insert(Key::ROOT, None, 0);
        this
    }

    pub(super) fn get(&self, key: Key<'_>) -> Option<&Node> {
        let node = &self.places[self.search(self.hash(key), key)];
        (!node.is_vacant()).then_some(node)
    }

    /// Where the node of `key` is, until another one is inserted.
    pub(super) fn place(&self, key: Key<'_>) -> Option<usize> {
        let place = self.search(self.hash(key), key);
        (!self.places[place].is_vacant()).then_some(place)
    }

    pub(super) fn at(&mut self, place: usize) -> &mut Node {
        &mut self.places[place]
    }

    /// Makes a node of a key that has none, and says where it is.
    pub(super) fn insert(&mut self, key: Key<'_>, rest: Option<&str>, id: u32) -> usize {
        self.occupied += 1;
        if 2 * self.occupied > self.places.len() {
            self.resize(2 * self.places.len());
        }
        let hash = self.hash(key);
        let place = self.search(hash, key);
        self.places[place] = Node {
            text: Text::new(key.text, rest),
            id,
            parent: key.parent,
            hash,
            key_bytes: u32::try_from(key.text.len()).expect("names are short"),
            edge: key.edge,
            wild: rest.is_some_and(|rest| rest.contains(['*', '#'])),
            ..Node::VACANT
        };
        place
    }

    /// All nodes, in no order.
    pub(super) fn all(&mut self) -> impl Iterator<Item = &mut Node> {
        self.places.iter_mut().filter(|node| !node.is_vacant())
    }

    /// Gives back the places that are not needed when no more nodes come.
    pub(super) fn shrink(&mut self) {
        self.resize(self.occupied * 8 / 5 + 1);
    }

    fn resize(&mut self, places: usize) {
        let places = vec![Node::VACANT; places].into();
        for node in std::mem::replace(&mut self.places, places) {
            if !node.is_vacant() {
                let mut at = home(node.hash, self.places.len());
                while !self.places[at].is_vacant() {
                    at = self.after(at);
                }
                self.places[at] = node;
            }
        }
    }

    /// Where `key` is or could be. Some places are always vacant, so every search ends.
    fn search(&self, hash: u32, key: Key<'_>) -> usize {
        let mut at = home(hash, self.places.len());
        while !self.places[at].is_vacant() && !self.places[at].is(hash, key) {
            at = self.after(at);
        }
        at
    }

    fn after(&self, place: usize) -> usize {
        match place + 1 {
            end if end == self.places.len() => 0,
            next => next,
        }
    }

    fn hash(&self, key: Key<'_>) -> u32 {
        let parent = u64::from(key.parent) << 8 | key.edge as u64;
        self.keyed.hash(parent, key.text)
    }
}
