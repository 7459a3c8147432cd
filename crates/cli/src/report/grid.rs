//! Importance and assignment as a grid: a row per layer, a column per module type.

use std::collections::BTreeSet;

use lora_drop_transformer::{ModuleId, ModuleKind};

use crate::report::words::module_name;
use lora_drop::assignment::{Assignment, Owner};
use lora_drop::run_record::ModuleNames;
use lora_drop::score::Importance;
use lora_drop::settings::Scope;

/// One scored module.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub importance: f64,
    pub score: f64,
    /// None before the assignment.
    pub owner: Option<Owner>,
}

/// Layers × module types; a module that was not scored is a hole.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The module types' names.
    pub columns: Vec<String>,
    /// Layer numbers, rising.
    pub layers: Vec<usize>,
    /// `cells[row][column]`
    pub cells: Vec<Vec<Option<Cell>>>,
}

/// A ranking: layers by falling importance, among equals the lower layer first, as in the
/// assignment.
#[derive(Clone, Debug)]
pub struct Ranking {
    pub name: String,
    pub places: Vec<Place>,
}

#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub layer: usize,
    /// The sum of I from the first place to this one.
    pub cumulative: f64,
    pub kept: bool,
}

impl Grid {
    pub fn new(importance: &Importance, assignment: Option<&Assignment>, names: &ModuleNames) -> Self {
        let kinds: BTreeSet<ModuleKind> = importance.modules.iter().map(|m| m.kind).collect();
        let layers: BTreeSet<usize> = importance.modules.iter().map(|m| m.layer).collect();
        let kinds: Vec<ModuleKind> = kinds.into_iter().collect();
        let layers: Vec<usize> = layers.into_iter().collect();
        let mut cells = vec![vec![None; kinds.len()]; layers.len()];
        for module in &importance.modules {
            let place = (layers.binary_search(&module.layer), kinds.binary_search(&module.kind));
            if let (Ok(row), Ok(column)) = place {
                let id = ModuleId { layer: module.layer, kind: module.kind };
                let owner = assignment.and_then(|a| a.owners.get(&id).copied());
                cells[row][column] = Some(Cell { importance: module.importance, score: module.score, owner });
            }
        }
        let columns = kinds.iter().map(|&k| module_name(names, k).to_string()).collect();
        Grid { columns, layers, cells }
    }

    /// The largest finite importance, 0 where there is none.
    pub fn largest(&self) -> f64 {
        self.all().map(|c| c.importance).filter(|i| i.is_finite()).fold(0.0, f64::max)
    }

    pub fn has(&self, owner: Owner) -> bool {
        self.all().any(|c| c.owner == Some(owner))
    }

    fn all(&self) -> impl Iterator<Item = &Cell> {
        self.cells.iter().flatten().flatten()
    }

    /// The rankings behind the assignment: one per module type, or one of whole layers.
    pub fn rankings(&self, scope: Scope) -> Vec<Ranking> {
        match scope {
            Scope::Module => {
                let column = |c: usize| self.cells.iter().map(|row| row[c].into_iter().collect()).collect();
                self.columns.iter().enumerate().map(|(c, name)| self.ranking(name, column(c))).collect()
            }
            Scope::Layer => {
                let rows = self.cells.iter().map(|row| row.iter().flatten().copied().collect()).collect();
                vec![self.ranking("whole layers", rows)]
            }
        }
    }

    /// The ranking of rows by the sum over `cells[row]`.
    fn ranking(&self, name: &str, cells: Vec<Vec<Cell>>) -> Ranking {
        let mut entries: Vec<(usize, f64, bool)> = std::iter::zip(&self.layers, cells)
            .filter(|(_, cells)| !cells.is_empty())
            .map(|(&layer, cells)| {
                let sum: f64 = cells.iter().map(|c| c.importance).filter(|i| i.is_finite()).sum();
                (layer, sum, cells.iter().all(|c| c.owner == Some(Owner::Own)))
            })
            .collect();
        entries.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut cumulative = 0.0;
        let places = entries
            .into_iter()
            .map(|(layer, importance, kept)| {
                cumulative += importance;
                Place { layer, cumulative, kept }
            })
            .collect();
        Ranking { name: name.to_string(), places }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::samples;

    #[test]
    fn rankings_add_up_and_know_what_is_kept() {
        let record = samples::lora_drop(12, 2);
        let grid = Grid::new(&record.importance.unwrap(), record.assignment.as_ref(), &record.module_names);
        assert_eq!((grid.columns.len(), grid.layers.len()), (2, 12));
        let by_type = grid.rankings(Scope::Module);
        assert_eq!(by_type.len(), 2);
        for ranking in &by_type {
            assert_eq!(ranking.places.len(), 12);
            assert!((ranking.places[11].cumulative - 1.0).abs() < 1e-9);
            let kept = ranking.places.iter().take_while(|p| p.kept).count();
            assert!(kept > 0 && ranking.places[kept..].iter().all(|p| !p.kept));
        }
        let whole = grid.rankings(Scope::Layer);
        assert_eq!(whole.len(), 1);
        assert!((whole[0].places[11].cumulative - 2.0).abs() < 1e-9);
    }

    #[test]
    fn equals_are_ranked_from_the_lower_layer_up() {
        let mut record = samples::lora_drop(3, 1);
        let importance = record.importance.as_mut().unwrap();
        importance.modules.iter_mut().for_each(|m| m.importance = 1.0 / 3.0);
        let grid = Grid::new(importance, None, &record.module_names);
        let order: Vec<usize> = grid.rankings(Scope::Module)[0].places.iter().map(|p| p.layer).collect();
        assert_eq!(order, [0, 1, 2]);
    }
}
