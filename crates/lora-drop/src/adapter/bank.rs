//! The adapters of a run: low-rank pairs, the map from each adapted module to its pair, and the
//! vectors that a module may own. Plain LoRA, LoRA-drop and its controls differ only in the map;
//! nothing below the bank knows which method runs.

use std::collections::{BTreeMap, BTreeSet};

use lora_drop_transformer::{
    AdapterMethod, AdapterTable, Group, LoraPair, Model, ModuleId, ModuleKind, ParamId, Parameters,
};

use super::common::{Product, best_common_pair};
use super::{PeftFormat, VectorInit, spec};
use crate::assignment::{Assignment, Owner};
use crate::{Error, Result};

/// A low-rank pair that one module owns or several modules of a type share.
#[derive(Clone, Debug, PartialEq)]
pub struct BankPair {
    /// The type of the modules that use it.
    pub kind: ModuleKind,
    /// Whether it is the shared pair of the modules that are not kept; it may have a single user.
    pub shared: bool,
    /// The layers whose module of this kind uses it, ascending; never empty.
    pub layers: Vec<usize>,
    /// Parameter ids of A and B, the rank and the scale.
    pub lora: LoraPair,
    /// Input width of each adapted linear layer.
    pub input: usize,
    /// Output width of each adapted linear layer.
    pub output: usize,
    /// Alpha as stored in files; `lora.scale` is alpha / rank, or alpha / sqrt(rank) with rsLoRA.
    pub alpha: f64,
}

impl BankPair {
    /// Number of values in A and B.
    pub fn parameters(&self) -> usize {
        self.lora.rank * (self.input + self.output)
    }
}

/// Settings of the pairs that a new bank creates.
#[derive(Clone, Copy, Debug)]
pub struct NewPairs {
    pub method: AdapterMethod,
    /// Rank of the modules for which the assignment names no other.
    pub rank: usize,
    /// Alpha at that rank; pairs of other ranks have the same scale.
    pub alpha: f64,
    /// Whether the scale is alpha / sqrt(rank) instead of alpha / rank.
    pub rslora: bool,
    /// Whether all pairs of a module type share one A (ShareLoRA, arXiv 2406.10785).
    pub shared_a: bool,
}

/// LoRA pairs and the map from modules to pairs; the values live in a [`Parameters`].
#[derive(Clone, Debug, Default)]
pub struct LoraBank {
    pairs: Vec<BankPair>,
    /// Index into `pairs` of each target module's pair; `None` for a module that was dropped.
    modules: BTreeMap<ModuleId, Option<usize>>,
    rslora: bool,
    method: AdapterMethod,
    /// Each module's own vectors, if the method has any.
    vectors: BTreeMap<ModuleId, Vec<ParamId>>,
    /// Each module's constant, after [`Self::precompute_constants`].
    constants: BTreeMap<ModuleId, ParamId>,
}

impl LoraBank {
    /// Adds newly initialised pairs to `parameters` for an assignment, in [`Group::Lora`] and with
    /// weight decay; for VeRA see `with_frozen_pairs`.
    ///
    /// `dims` returns a module type's widths (in, out). The values depend only on the seed and the
    /// pair's name, so a kept module starts from the same A whatever else is kept.
    pub fn new(
        assignment: &Assignment,
        new: NewPairs,
        dims: impl Fn(ModuleKind) -> (usize, usize),
        seed: u64,
        parameters: &mut Parameters,
    ) -> Self {
        let NewPairs { method, rank, alpha, rslora, shared_a } = new;
        let mut bank = Self::empty(method, rslora);
        let mut shared: BTreeMap<ModuleKind, usize> = BTreeMap::new();
        let mut of_type: BTreeMap<ModuleKind, ParamId> = BTreeMap::new();
        for (&id, &owner) in &assignment.owners {
            let is_shared = owner == Owner::Shared;
            let known = shared.get(&id.kind).copied().filter(|_| is_shared);
            if owner == Owner::None || known.is_some() {
                bank.assign(id, known);
                continue;
            }
            let (name, name_a) = (pair_name(id, is_shared), pair_name(id, is_shared || shared_a));
            let (input, output) = dims(id.kind);
            let (run, rank) = (rank, assignment.rank(id, rank));
            let alpha = match rank == run {
                true => alpha,
                false => scale(alpha, run, rslora) / scale(1.0, rank, rslora),
            };
            let init = |name: &str| (spec(method).init_pair)(seed, name, rank, [input, output]);
            let [mut a, b_t] = init(&name);
            let a = match of_type.get(&id.kind).filter(|_| shared_a) {
                Some(&known) => PairA::Shared(known),
                None => {
                    if name_a != name {
                        [a, _] = init(&name_a);
                    }
                    PairA::New(&name_a, &a)
                }
            };
            let values = PairValues { a, b_t: &b_t, input, output, rank, alpha };
            let pair = bank.add(id.kind, is_shared, &name, values, parameters);
            of_type.entry(id.kind).or_insert(bank.pairs[pair].lora.a);
            if is_shared {
                shared.insert(id.kind, pair);
            }
            bank.assign(id, Some(pair));
        }
        bank
    }

    /// Builds a bank of frozen pairs (VeRA, Kopiczko et al. 2024): one per module type, cut from an
    /// A (rank, in) and a B (out, rank) as wide as the widest type. Only each module's vectors
    /// train; the scale is 1.
    pub(crate) fn with_frozen_pairs(
        modules: &[ModuleId],
        method: AdapterMethod,
        rank: usize,
        dims: impl Fn(ModuleKind) -> (usize, usize),
        seed: u64,
        parameters: &mut Parameters,
    ) -> Self {
        let mut bank = Self::empty(method, false);
        let spec = spec(method);
        // In `parameters`, everything that trains precedes the constants.
        for &id in modules {
            let (_, output) = dims(id.kind);
            for vector in spec.vectors {
                let VectorInit::Constant(value) = vector.init else { continue };
                bank.add_vector(id, vector.name, &vec![value; vector.side.len(rank, output)], parameters);
            }
        }
        let kinds: BTreeSet<ModuleKind> = modules.iter().map(|id| id.kind).collect();
        let widths: Vec<(usize, usize)> = kinds.iter().map(|&kind| dims(kind)).collect();
        let widest = [
            widths.iter().map(|(input, _)| *input).max().unwrap_or(0),
            widths.iter().map(|(_, output)| *output).max().unwrap_or(0),
        ];
        let [a, b] = (spec.init_pair)(seed, "lora.shared", rank, widest);
        for (kind, (input, output)) in kinds.into_iter().zip(widths) {
            let name = pair_name(ModuleId { layer: 0, kind }, true);
            let rows: Vec<f32> =
                a.chunks_exact(widest[0]).flat_map(|row| row[..input].iter().copied()).collect();
            let b_t = transposed(&b[..output * rank], output, rank);
            let lora = LoraPair {
                a: parameters.add_constant(&format!("{name}.A"), &[rank, input], &rows),
                b: parameters.add_constant(&format!("{name}.B"), &[rank, output], &b_t),
                rank,
                scale: 1.0,
            };
            let alpha = rank as f64;
            bank.pairs.push(BankPair { kind, shared: true, layers: Vec::new(), lora, input, output, alpha });
            for id in modules.iter().filter(|id| id.kind == kind) {
                bank.assign(*id, Some(bank.pairs.len() - 1));
            }
        }
        bank
    }

    /// Returns a bank without pairs.
    pub(super) fn empty(method: AdapterMethod, rslora: bool) -> Self {
        LoraBank { method, rslora, ..Default::default() }
    }

    /// Adds the adapted modules' own vectors to `parameters`, with their initial values.
    ///
    /// # Errors
    /// The device fails.
    pub(crate) fn init_vectors(&mut self, model: &Model, parameters: &mut Parameters) -> Result<()> {
        let spec = spec(self.method);
        let widths = |(id, pair): (ModuleId, &BankPair)| (id, pair.shared, pair.lora.rank, pair.output);
        let modules: Vec<_> = self.adapted().map(widths).collect();
        for (id, shared, rank, output) in modules {
            for vector in spec.vectors(shared) {
                let values = match vector.init {
                    VectorInit::Constant(value) => vec![value; vector.side.len(rank, output)],
                    VectorInit::FromWeight(of) => of(model, parameters, id, None)?,
                };
                self.add_vector(id, vector.name, &values, parameters);
            }
        }
        Ok(())
    }

    /// Precomputes, for a model that does not train, what each pass would derive from the
    /// parameters (DoRA's norms).
    ///
    /// # Errors
    /// The device fails.
    pub fn precompute_constants(&mut self, model: &Model, parameters: &mut Parameters) -> Result<()> {
        let Some(constant) = spec(self.method).constant else { return Ok(()) };
        let modules: Vec<_> = self.adapted().map(|(id, pair)| (id, pair.lora)).collect();
        modules.into_iter().try_for_each(|(id, lora)| {
            let values = constant(model, parameters, id, Some(lora))?;
            let name = format!("{}.constant", pair_name(id, false));
            let constant = parameters.add_constant(&name, &[values.len()], &values);
            self.constants.insert(id, constant);
            Ok(())
        })
    }

    /// Adds a module's own vector.
    pub(super) fn add_vector(
        &mut self,
        id: ModuleId,
        name: &str,
        values: &[f32],
        parameters: &mut Parameters,
    ) {
        let name = format!("{}.{name}", pair_name(id, false));
        let vector = parameters.add(&name, &[values.len()], Group::Lora, true, values);
        self.vectors.entry(id).or_default().push(vector);
    }

    /// Adds a pair to the bank and its values to `parameters`; returns its index. No module uses it
    /// yet.
    pub(super) fn add(
        &mut self,
        kind: ModuleKind,
        shared: bool,
        name: &str,
        values: PairValues<'_>,
        parameters: &mut Parameters,
    ) -> usize {
        let PairValues { a, b_t, input, output, rank, alpha } = values;
        let a = match a {
            PairA::Shared(a) => a,
            PairA::New(name, a) => parameters.add(&format!("{name}.A"), &[rank, input], Group::Lora, true, a),
        };
        let b = parameters.add(&format!("{name}.B"), &[rank, output], Group::Lora, true, b_t);
        let scale = scale(alpha, rank, self.rslora) as f32;
        let lora = LoraPair { a, b, rank, scale };
        self.pairs.push(BankPair { kind, shared, layers: Vec::new(), lora, input, output, alpha });
        self.pairs.len() - 1
    }

    /// Assigns a pair to a module; `None` drops the module.
    pub(super) fn assign(&mut self, id: ModuleId, pair: Option<usize>) {
        if let Some(pair) = pair {
            self.pairs[pair].layers.push(id.layer);
        }
        self.modules.insert(id, pair);
    }

    /// The unique pairs, in the order in which they were added.
    pub fn pairs(&self) -> &[BankPair] {
        &self.pairs
    }

    /// The target modules, each with the index of its pair in [`Self::pairs`]; `None` if it was
    /// dropped.
    pub fn modules(&self) -> &BTreeMap<ModuleId, Option<usize>> {
        &self.modules
    }

    /// The adapted modules with their pairs.
    pub fn adapted(&self) -> impl Iterator<Item = (ModuleId, &BankPair)> {
        self.modules.iter().filter_map(|(&id, &pair)| Some((id, &self.pairs[pair?])))
    }

    /// The pair of a module; `None` if it has no LoRA.
    pub fn pair_of(&self, module: ModuleId) -> Option<&BankPair> {
        self.modules.get(&module).copied().flatten().map(|pair| &self.pairs[pair])
    }

    /// Returns each module's adapter, for a model of `layers` blocks.
    ///
    /// # Panics
    /// A module's layer is not below `layers`.
    pub fn table(&self, layers: usize) -> AdapterTable {
        let mut table = AdapterTable::empty(layers);
        let adapter = spec(self.method).adapter;
        for (&id, pair) in &self.modules {
            let (vectors, constant) = (self.vector_ids(id), self.constants.get(&id).copied());
            table.set(id, pair.map(|pair| adapter(self.pairs[pair].lora, vectors, constant)));
        }
        table
    }

    /// Number of trained values in all unique pairs and in the modules' own vectors.
    pub fn unique_parameters(&self) -> usize {
        let spec = spec(self.method);
        let of_vectors: usize = self
            .adapted()
            .map(|(_, pair)| spec.vector_values(pair.shared, pair.lora.rank, pair.output))
            .sum();
        if spec.peft == PeftFormat::Vera {
            return of_vectors;
        }
        let mut known = BTreeSet::new();
        let values = |pair: &BankPair| {
            let a = if known.insert(pair.lora.a) { pair.lora.rank * pair.input } else { 0 };
            a + pair.lora.rank * pair.output
        };
        self.pairs.iter().map(values).sum::<usize>() + of_vectors
    }

    /// The method of all pairs.
    pub fn method(&self) -> AdapterMethod {
        self.method
    }

    /// Returns a module's own vectors, concatenated, if it has any.
    pub fn vectors(&self, module: ModuleId, parameters: &Parameters) -> Option<Vec<f32>> {
        let vectors = self.vectors.get(&module)?;
        Some(vectors.iter().flat_map(|&id| parameters.value(id).iter().copied()).collect())
    }

    /// Parameter ids of a module's own vectors.
    pub(crate) fn vector_ids(&self, module: ModuleId) -> &[ParamId] {
        self.vectors.get(&module).map_or(&[], Vec::as_slice)
    }

    /// Whether the scale is alpha / sqrt(rank) instead of alpha / rank.
    pub fn rslora(&self) -> bool {
        self.rslora
    }

    /// A, (rank, in), as in files.
    pub fn a(&self, pair: &BankPair, parameters: &Parameters) -> Vec<f32> {
        parameters.value(pair.lora.a).to_vec()
    }

    /// B, (out, rank), as in files.
    pub fn b(&self, pair: &BankPair, parameters: &Parameters) -> Vec<f32> {
        transposed(parameters.value(pair.lora.b), pair.lora.rank, pair.output)
    }

    /// Initialises the pairs from those of `old`. A pair with one user and an unchanged rank is
    /// copied; a shared pair, or one of another rank, becomes the best common pair of its modules'
    /// old pairs. If the mean of the old products has a lower rank than the pair, the remaining
    /// rows of A keep their initial values, with B zero. Vectors that a module has in both banks
    /// are copied.
    ///
    /// # Errors
    /// A module has no pair in `old`, or one of other widths.
    pub(crate) fn continue_from(
        &self,
        parameters: &mut Parameters,
        old: &LoraBank,
        old_parameters: &Parameters,
    ) -> Result<()> {
        for &id in self.vectors.keys() {
            for (&new, &learnt) in self.vector_ids(id).iter().zip(old.vector_ids(id)) {
                parameters.value_mut(new).copy_from_slice(old_parameters.value(learnt));
            }
        }
        for pair in &self.pairs {
            let mut sources = Vec::new();
            for &layer in &pair.layers {
                let module = format!("layer {layer} {}", pair.kind.name());
                let source = old.pair_of(ModuleId { layer, kind: pair.kind }).ok_or_else(|| {
                    Error::Input(format!("cannot continue: {module} has no LoRA to continue from"))
                })?;
                let widths = |p: &BankPair| (p.input, p.output);
                if widths(source) != widths(pair) {
                    return Err(Error::Input(format!(
                        "cannot continue: the LoRA of {module} was (in, out) = {:?} before, now {:?}",
                        widths(source),
                        widths(pair)
                    )));
                }
                sources.push(source.lora);
            }
            let learnt = |id| old_parameters.value(id);
            if let [source] = sources[..]
                && source.rank == pair.lora.rank
            {
                parameters.value_mut(pair.lora.a).copy_from_slice(learnt(source.a));
                parameters.value_mut(pair.lora.b).copy_from_slice(learnt(source.b));
                continue;
            }
            let product =
                |s: &LoraPair| Product { scale: f64::from(s.scale), a: learnt(s.a), b_t: learnt(s.b) };
            let products: Vec<Product> = sources.iter().map(product).collect();
            let widths = (pair.input, pair.output);
            let common = best_common_pair(&products, pair.lora.rank, widths, f64::from(pair.lora.scale));
            for (i, (a, b)) in common.into_iter().enumerate() {
                parameters.value_mut(pair.lora.a)[i * pair.input..][..pair.input].copy_from_slice(&a);
                parameters.value_mut(pair.lora.b)[i * pair.output..][..pair.output].copy_from_slice(&b);
            }
        }
        Ok(())
    }
}

/// Source of a new pair's A.
pub(super) enum PairA<'a> {
    /// Name and values, (rank, in), of a new tensor.
    New(&'a str, &'a [f32]),
    /// The A of an existing pair.
    Shared(ParamId),
}

/// The initial values of a new pair.
pub(super) struct PairValues<'a> {
    pub a: PairA<'a>,
    /// (rank, out)
    pub b_t: &'a [f32],
    pub input: usize,
    pub output: usize,
    pub rank: usize,
    pub alpha: f64,
}

/// Common prefix of a pair's tensor names in [`Parameters`]: `lora.query.3`, `lora.query.shared`.
pub(super) fn pair_name(id: ModuleId, shared: bool) -> String {
    let kind = id.kind.name();
    if shared { format!("lora.{kind}.shared") } else { format!("lora.{kind}.{}", id.layer) }
}

/// s = alpha / rank, or alpha / sqrt(rank) with rsLoRA.
pub(super) fn scale(alpha: f64, rank: usize, rslora: bool) -> f64 {
    let rank = rank as f64;
    alpha / if rslora { rank.sqrt() } else { rank }
}

/// Transposes a (rows, columns) matrix.
pub(super) fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| values[r * columns + c])).collect()
}

#[cfg(test)]
mod tests {
    use lora_drop_transformer::Adapter;

    use super::*;

    const RANK: usize = 2;
    const LORA: NewPairs =
        NewPairs { method: AdapterMethod::Lora, rank: RANK, alpha: 6.0, rslora: false, shared_a: false };

    fn dims(kind: ModuleKind) -> (usize, usize) {
        if kind == ModuleKind::Intermediate { (4, 12) } else { (4, 6) }
    }

    fn id(layer: usize, kind: ModuleKind) -> ModuleId {
        ModuleId { layer, kind }
    }

    /// Three layers: query keeps its own pair in layer 1 and shares one in the others; intermediate
    /// has a pair in layer 2 only.
    fn assignment() -> Assignment {
        let mut owners = BTreeMap::new();
        for layer in 0..3 {
            owners.insert(id(layer, ModuleKind::Query), if layer == 1 { Owner::Own } else { Owner::Shared });
            owners.insert(
                id(layer, ModuleKind::Intermediate),
                if layer == 2 { Owner::Own } else { Owner::None },
            );
        }
        owners.into()
    }

    fn bank(assignment: &Assignment) -> (LoraBank, Parameters) {
        let mut parameters = Parameters::new();
        let bank = LoraBank::new(assignment, LORA, dims, 3, &mut parameters);
        (bank, parameters)
    }

    #[test]
    fn pairs_follow_the_assignment() {
        let (bank, parameters) = bank(&assignment());
        let names: Vec<&str> = parameters.list().iter().map(|p| p.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "lora.query.shared.A",
                "lora.query.shared.B",
                "lora.query.1.A",
                "lora.query.1.B",
                "lora.intermediate.2.A",
                "lora.intermediate.2.B"
            ]
        );
        assert_eq!(bank.unique_parameters(), parameters.count());
        assert_eq!(
            bank.unique_parameters(),
            assignment().unique_parameters(|k| (RANK * (dims(k).0 + dims(k).1)).into())
        );
        let table = bank.table(3);
        let pair = |layer, kind| table.get(id(layer, kind));
        assert_eq!(pair(0, ModuleKind::Query), pair(2, ModuleKind::Query));
        assert_ne!(pair(0, ModuleKind::Query), pair(1, ModuleKind::Query));
        assert_eq!(pair(0, ModuleKind::Intermediate), None);
        let Some(Adapter::Lora(kept)) = pair(2, ModuleKind::Intermediate) else { panic!("not kept") };
        assert_eq!((kept.rank, kept.scale), (RANK, 3.0));
        assert_eq!(parameters.info(kept.b).shape, [RANK, 12]);
        assert_eq!(bank.pair_of(id(0, ModuleKind::Query)).expect("shared").layers, [0, 2]);
    }

    #[test]
    fn a_kept_module_starts_the_same_whatever_else_is_kept() {
        let (some, some_values) = bank(&assignment());
        let (all, all_values) = bank(&Assignment::all_own(assignment().owners.into_keys()));
        let start = |bank: &LoraBank, values: &Parameters| -> Vec<f32> {
            bank.a(bank.pair_of(id(1, ModuleKind::Query)).expect("adapted"), values)
        };
        assert_eq!(start(&some, &some_values), start(&all, &all_values));
        assert!(start(&some, &some_values).iter().all(|v| *v != 0.0 && v.abs() < 0.5));
        assert!(some.pairs().iter().all(|p| some_values.value(p.lora.b).iter().all(|v| *v == 0.0)));
    }

    #[test]
    fn with_a_shared_each_module_has_its_own_b_on_the_types_a() {
        let mut parameters = Parameters::new();
        let all = Assignment::all_own(assignment().owners.into_keys());
        let shared_a = NewPairs { shared_a: true, ..LORA };
        let bank = LoraBank::new(&all, shared_a, dims, 3, &mut parameters);
        let a = |layer, kind| bank.pair_of(id(layer, kind)).expect("adapted").lora.a;
        let b = |layer, kind| bank.pair_of(id(layer, kind)).expect("adapted").lora.b;
        assert_eq!(a(0, ModuleKind::Query), a(2, ModuleKind::Query));
        assert_ne!(a(0, ModuleKind::Query), a(0, ModuleKind::Intermediate));
        assert_ne!(b(0, ModuleKind::Query), b(2, ModuleKind::Query));
        assert_eq!(bank.unique_parameters(), parameters.count());
        assert_eq!(parameters.count(), RANK * (4 + 3 * 6) + RANK * (4 + 3 * 12));
    }

    #[test]
    fn constants_are_slices_of_one_pair_and_only_vectors_train() {
        let mut parameters = Parameters::new();
        let modules: Vec<ModuleId> = assignment().owners.into_keys().collect();
        let bank = LoraBank::with_frozen_pairs(&modules, AdapterMethod::Vera, 3, dims, 3, &mut parameters);
        assert_eq!((bank.unique_parameters(), parameters.count()), (72, 3 * (3 + 6) + 3 * (3 + 12)));
        assert_eq!(parameters.constants(), 3 * (4 + 6) + 3 * (4 + 12));
        let [narrow, wide] =
            [ModuleKind::Query, ModuleKind::Intermediate].map(|kind| bank.pair_of(id(0, kind)).unwrap());
        assert_eq!(bank.a(narrow, &parameters), bank.a(wide, &parameters));
        assert_eq!(bank.b(narrow, &parameters), bank.b(wide, &parameters)[..6 * 3]);
        assert_eq!(narrow.lora.scale, 1.0);
        let vectors = bank.vectors(id(1, ModuleKind::Query), &parameters).unwrap();
        assert_eq!(vectors, [[0.1; 3].to_vec(), vec![0.0; 6]].concat());
    }

    #[test]
    fn rslora_scales_by_the_root_of_the_rank() {
        let mut parameters = Parameters::new();
        let bank = LoraBank::new(
            &assignment(),
            NewPairs { rank: 4, rslora: true, ..LORA },
            dims,
            3,
            &mut parameters,
        );
        assert_eq!(bank.pairs()[0].lora.scale, 3.0);
    }

    #[test]
    fn a_module_may_have_a_rank_of_its_own() {
        let mut uneven = assignment();
        uneven.ranks.insert(id(1, ModuleKind::Query), 3);
        let (bank, parameters) = bank(&uneven);
        let pair = bank.pair_of(id(1, ModuleKind::Query)).expect("kept");
        assert_eq!((pair.lora.rank, pair.lora.scale, pair.alpha), (3, 3.0, 9.0));
        assert_eq!(parameters.info(pair.lora.a).shape, [3, 4]);
        assert_eq!(bank.pair_of(id(0, ModuleKind::Query)).expect("shared").lora.rank, RANK);
        let text = serde_json::to_string(&uneven).unwrap();
        assert_eq!(serde_json::from_str::<Assignment>(&text).unwrap(), uneven);
        assert!(serde_json::from_str::<Assignment>(&text.replace("\"rank\":3", "\"rank\":0")).is_err());
    }

    #[test]
    fn b_is_read_out_as_out_by_rank() {
        let (bank, mut parameters) = bank(&assignment());
        let pair = &bank.pairs()[0];
        let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
        parameters.value_mut(pair.lora.b).copy_from_slice(&values);
        assert_eq!(bank.b(pair, &parameters), [0., 6., 1., 7., 2., 8., 3., 9., 4., 10., 5., 11.]);
    }

    #[test]
    fn continuing_copies_the_kept_and_fits_the_shared() {
        let (old, mut old_values) = bank(&Assignment::all_own(assignment().owners.into_keys()));
        let mut numbers = super::super::init::RandomStream::new(1, "learnt");
        let learnt: Vec<f32> = (0..old_values.count()).map(|_| numbers.uniform(1.0)).collect();
        old_values.set_values(&learnt);
        let (new, mut values) = bank(&assignment());
        new.continue_from(&mut values, &old, &old_values).expect("the same shapes");

        let of = |bank: &LoraBank, values: &Parameters, layer| -> (Vec<f32>, Vec<f32>) {
            let pair = bank.pair_of(id(layer, ModuleKind::Query)).expect("adapted");
            (bank.a(pair, values), values.value(pair.lora.b).to_vec())
        };
        assert_eq!(of(&new, &values, 1), of(&old, &old_values, 1));
        let (first, last) = (of(&old, &old_values, 0), of(&old, &old_values, 2));
        let products = [&first, &last].map(|(a, b_t)| Product { scale: 3.0, a, b_t });
        let (a, b): (Vec<_>, Vec<_>) = best_common_pair(&products, RANK, (4, 6), 3.0).into_iter().unzip();
        assert_eq!(of(&new, &values, 0), (a.concat(), b.concat()));
    }

    #[test]
    fn continuing_from_nothing_learnt_keeps_the_initial_values() {
        let (old, old_values) = bank(&Assignment::all_own(assignment().owners.into_keys()));
        let (new, mut values) = bank(&assignment());
        let shared = new.pair_of(id(0, ModuleKind::Query)).expect("shared");
        let before = new.a(shared, &values);
        new.continue_from(&mut values, &old, &old_values).expect("the same shapes");
        assert_eq!(new.a(shared, &values), before);
        assert!(values.value(shared.lora.b).iter().all(|v| *v == 0.0));
    }

    #[test]
    fn continuing_from_other_shapes_is_an_error() {
        let (old, old_values) = bank(&Assignment::all_own([id(1, ModuleKind::Query)]));
        let (new, mut values) = bank(&assignment());
        let message = new.continue_from(&mut values, &old, &old_values).expect_err("no pair").to_string();
        assert!(message.contains("layer 0 query has no LoRA"), "{message}");

        let mut parameters = Parameters::new();
        let all = Assignment::all_own(assignment().owners.into_keys());
        let wider = LoraBank::new(&all, LORA, |_| (5, 6), 3, &mut parameters);
        let message = new.continue_from(&mut values, &wider, &parameters).expect_err("width 5").to_string();
        assert!(message.contains("(5, 6)") && message.contains("(4, 6)"), "{message}");
    }
}
