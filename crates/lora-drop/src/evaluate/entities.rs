//! Entities in the tags of words, as seqeval reads them by default: IOB1, IOB2 and BIOES alike,
//! because a tag that cannot follow the previous one begins a new entity.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The tag outside of entities.
const OUTSIDE: &str = "O";

/// Position of a word in its entity, according to its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Begin,
    Inside,
    End,
    Single,
    Outside,
}

/// The tags of a task that mark entities.
#[derive(Clone, Debug)]
pub struct EntityTags {
    /// By the tag's index: the position, and the index of the entity's type.
    tags: Vec<(Place, usize)>,
    /// Names of the types, sorted.
    types: Vec<String>,
}

/// An entity in a row: its type, by index, and its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entity {
    pub kind: usize,
    pub words: Range<usize>,
}

/// Counts of the entities of a type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityCount {
    /// Name of the type.
    pub kind: String,
    /// Number of entities in the labels.
    pub labelled: usize,
    /// Number of predicted entities.
    pub predicted: usize,
    /// Number of entities predicted with the right type and the right words.
    pub correct: usize,
}

impl EntityTags {
    /// Parses the tags of these names, by index. `None` if they mark no entities: a name is neither
    /// O nor begins with B-, I-, E- or S-, or all names are O.
    pub fn new(names: &[String]) -> Option<Self> {
        let parts = |name: &String| {
            let (place, kind) = match name.split_once('-') {
                Some(("B", kind)) => (Place::Begin, kind),
                Some(("I", kind)) => (Place::Inside, kind),
                Some(("E", kind)) => (Place::End, kind),
                Some(("S", kind)) => (Place::Single, kind),
                _ if name == OUTSIDE => return Some((Place::Outside, String::new())),
                _ => return None,
            };
            // As in seqeval, for a type without a name.
            Some((place, if kind.is_empty() { "_" } else { kind }.to_string()))
        };
        let parts = names.iter().map(parts).collect::<Option<Vec<_>>>()?;
        let named = parts.iter().filter(|(place, _)| *place != Place::Outside);
        let types: Vec<String> =
            named.map(|(_, kind)| kind.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        let index = |kind: &String| types.binary_search(kind).unwrap_or_default();
        let tags = parts.iter().map(|(place, kind)| (*place, index(kind))).collect();
        (!types.is_empty()).then_some(EntityTags { tags, types })
    }

    /// Returns a type's name.
    pub fn kind(&self, entity: &Entity) -> &str {
        &self.types[entity.kind]
    }

    /// Returns the entities in a row's tags, which are given by index.
    pub fn entities(&self, row: impl IntoIterator<Item = usize>) -> Vec<Entity> {
        use Place::*;
        let (mut found, mut open): (Vec<Entity>, Option<Entity>) = (Vec::new(), None);
        let mut before = Outside;
        for (word, tag) in row.into_iter().enumerate() {
            let (place, kind) = self.tags[tag];
            let goes_on = matches!((before, place), (Begin | Inside, Inside | End));
            match &mut open {
                Some(entity) if goes_on && entity.kind == kind => entity.words.end = word + 1,
                _ => {
                    found.extend(open.take());
                    open = (place != Outside).then(|| Entity { kind, words: word..word + 1 });
                }
            }
            before = place;
        }
        found.extend(open);
        found
    }

    /// Counts the entities in the rows' labels and predictions, for each type that occurs.
    pub fn count(&self, rows: impl IntoIterator<Item = (Vec<usize>, Vec<usize>)>) -> Vec<EntityCount> {
        let mut counts: BTreeMap<usize, EntityCount> = BTreeMap::new();
        for (labels, predicted) in rows {
            let [labels, predicted] = [labels, predicted].map(|tags| self.entities(tags));
            let mut add = |entity: &Entity, labelled, predicted, correct| {
                let new = || EntityCount { kind: self.kind(entity).to_string(), ..EntityCount::default() };
                let count = counts.entry(entity.kind).or_insert_with(new);
                count.labelled += labelled;
                count.predicted += predicted;
                count.correct += correct;
            };
            labels.iter().for_each(|entity| add(entity, 1, 0, 0));
            // Both are sorted by their first words.
            let is_right = |entity: &Entity| {
                labels
                    .binary_search_by(|label| label.words.start.cmp(&entity.words.start))
                    .is_ok_and(|at| labels[at] == *entity)
            };
            predicted.iter().for_each(|entity| add(entity, 0, 1, usize::from(is_right(entity))));
        }
        counts.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entities(row: &str) -> Vec<(String, Range<usize>)> {
        let names: Vec<String> =
            ["O", "B-A", "I-A", "E-A", "S-A", "B-B", "I-B", "E-B", "S-B"].map(String::from).into();
        let tags = EntityTags::new(&names).unwrap();
        let index = |tag: &str| names.iter().position(|name| name == tag).unwrap();
        let found = tags.entities(row.split(' ').map(index));
        found.into_iter().map(|entity| (tags.kind(&entity).to_string(), entity.words)).collect()
    }

    /// Expected: `get_entities` of seqeval 1.2.2 on the same tags.
    #[test]
    fn entities_are_seqevals() {
        let of = |kind: &str, words| (kind.to_string(), words);
        // IOB2
        assert_eq!(entities("O B-A I-A B-A O"), [of("A", 1..3), of("A", 3..4)]);
        // IOB1: an entity begins with I, or with B after another of its type.
        assert_eq!(
            entities("I-A I-A B-A I-B O I-B"),
            [of("A", 0..2), of("A", 2..3), of("B", 3..4), of("B", 5..6)]
        );
        // BIOES
        assert_eq!(entities("B-A I-A E-A S-A S-B"), [of("A", 0..3), of("A", 3..4), of("B", 4..5)]);
        // Tags that cannot follow each other.
        assert_eq!(entities("E-A I-A E-A O E-B"), [of("A", 0..1), of("A", 1..3), of("B", 4..5)]);
        assert_eq!(entities("S-A I-A S-A E-A"), [of("A", 0..1), of("A", 1..2), of("A", 2..3), of("A", 3..4)]);
        assert_eq!(entities("B-A I-B I-A E-B"), [of("A", 0..1), of("B", 1..2), of("A", 2..3), of("B", 3..4)]);
        assert_eq!(entities("O O"), []);
    }

    #[test]
    fn other_tags_mark_no_entities() {
        let of = |names: &[&str]| EntityTags::new(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        assert!(of(&["O", "B-PER", "I-PER"]).is_some());
        assert!(of(&["NOUN", "VERB"]).is_none() && of(&["O", "PER"]).is_none() && of(&["0", "1"]).is_none());
        // BILOU is not among the schemes that seqeval reads by default.
        assert!(of(&["O", "B-A", "L-A", "U-A"]).is_none());
    }

    #[test]
    fn an_entity_is_right_with_its_type_and_its_words() {
        let names: Vec<String> = ["O", "B-A", "I-A", "B-B"].map(String::from).into();
        let tags = EntityTags::new(&names).unwrap();
        let found = tags.count([(vec![1, 2, 0, 3, 1], vec![1, 0, 0, 3, 3])]);
        let numbers: Vec<_> =
            found.iter().map(|c| (c.kind.as_str(), c.labelled, c.predicted, c.correct)).collect();
        assert_eq!(numbers, [("A", 2, 1, 0), ("B", 1, 2, 1)]);
    }
}
