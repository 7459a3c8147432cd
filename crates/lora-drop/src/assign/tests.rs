//! Selection rules on hand-made scores, and properties that hold for any scores.

use proptest::prelude::*;

use super::*;
use crate::assignment::Owner;
use crate::score::Importance;
use crate::settings::Unselected;

/// Parameters of one pair in these tests: feed-forward modules are larger.
fn size(kind: ModuleKind) -> Sizes {
    let size: usize = match kind {
        ModuleKind::Intermediate | ModuleKind::Output => 5,
        _ => 2,
    };
    size.into()
}

fn scored(scores: &[(ModuleKind, &[f64])]) -> Importance {
    let scores = scores
        .iter()
        .flat_map(|(kind, g)| g.iter().enumerate().map(|(layer, &g)| (ModuleId { layer, kind: *kind }, g)))
        .collect();
    Importance::from_scores(&scores, Scope::Module)
}

fn module(importance: &Importance, selection: Selection, unselected: Unselected) -> Result<Assignment> {
    assign(importance, selection, Scope::Module, unselected.into(), size)
}

fn share(importance: &Importance, selection: Selection) -> Assignment {
    module(importance, selection, Unselected::Share).expect("a valid choice")
}

fn kept(assignment: &Assignment, kind: ModuleKind) -> Vec<usize> {
    assignment.kept()[&kind].clone()
}

use ModuleKind::{Intermediate, Query, Value};

/// The paper's example of MRPC, epoch 4.
fn mrpc() -> Importance {
    scored(&[(Query, &[0.01, 0.03, 0.05, 0.13, 0.19, 0.59]), (Value, &[0.05, 0.09, 0.05, 0.15, 0.30, 0.37])])
}

#[test]
fn threshold_keeps_what_was_seen_with_peft() {
    let assignment = share(&mrpc(), Selection::Threshold(0.9));
    assert_eq!(kept(&assignment, Query), [3, 4, 5]);
    // 0.37 + 0.30 + 0.15 + 0.09 = 0.91
    assert_eq!(kept(&assignment, Value), [1, 3, 4, 5]);
    assert_eq!(assignment.owners[&ModuleId { layer: 0, kind: Query }], Owner::Shared);
    assert_eq!(assignment.unique_parameters(size), (4 + 5) * 2);
    assert_eq!(assignment.plain_parameters(size), 12 * 2);
}

#[test]
fn equal_scores_keep_the_lower_layers() {
    let flat = scored(&[(Query, &[1.0; 4])]);
    assert_eq!(kept(&share(&flat, Selection::Threshold(0.5)), Query), [0, 1]);
    assert_eq!(kept(&share(&flat, Selection::TopK(3)), Query), [0, 1, 2]);
}

#[test]
fn a_threshold_of_one_keeps_everything() {
    let with_zero = scored(&[(Query, &[0.0, 1.0, 1e-20])]);
    assert_eq!(kept(&share(&with_zero, Selection::Threshold(1.0)), Query), [0, 1, 2]);
}

#[test]
fn rounding_does_not_keep_one_more() {
    // ten times 0.1 adds up to a little less than 1, and nine times to a little less than 0.9
    let flat = scored(&[(Query, &[0.1; 10])]);
    assert_eq!(kept(&share(&flat, Selection::Threshold(0.9)), Query).len(), 9);
}

#[test]
fn layer_scope_adds_up_a_layers_scores_and_keeps_it_whole() {
    let importance = scored(&[(Query, &[5.0, 1.0, 0.0]), (Value, &[0.0, 6.0, 2.0])]);
    let assignment = assign(&importance, Selection::TopK(1), Scope::Layer, Unselected::Drop.into(), size)
        .expect("a valid choice");
    assert_eq!(kept(&assignment, Query), [1]);
    assert_eq!(kept(&assignment, Value), [1]);
    assert_eq!(assignment.owners[&ModuleId { layer: 0, kind: Query }], Owner::None);
}

#[test]
fn a_single_unselected_module_is_the_only_user_of_the_shared_pair() {
    let assignment = share(&mrpc(), Selection::TopK(5));
    assert_eq!(assignment.owners[&ModuleId { layer: 0, kind: Query }], Owner::Shared);
    assert_eq!(assignment.unique_parameters(size), assignment.plain_parameters(size));
}

#[test]
fn nothing_kept_is_everything_shared() {
    let assignment = share(&mrpc(), Selection::TopK(0));
    assert!(assignment.owners.values().all(|o| *o == Owner::Shared));
    assert_eq!(assignment.kept()[&Query], [0usize; 0]);
    assert_eq!(assignment.unique_parameters(size), 4);
}

#[test]
fn budget_spends_by_share_over_all_types() {
    // order: q5 .59, v5 .37, v4 .30, q4 .19, v3 .15, ...; six of twelve pairs, two of them shared
    let assignment = share(&mrpc(), Selection::Budget(0.5));
    assert_eq!(kept(&assignment, Query), [4, 5]);
    assert_eq!(kept(&assignment, Value), [4, 5]);
    assert_eq!(assignment.unique_parameters(size), 12);
    assert_eq!(kept(&share(&mrpc(), Selection::Budget(7.0 / 12.0)), Value), [3, 4, 5]);
    assert_eq!(kept(&share(&mrpc(), Selection::Budget(1.0)), Query).len(), 6);
    let dropped = module(&mrpc(), Selection::Budget(0.5), Unselected::Drop).expect("a valid choice");
    assert_eq!(dropped.unique_parameters(size), 12);
    assert_eq!(kept(&dropped, Value), [1, 3, 4, 5][1..]);
}

#[test]
fn a_budget_that_cannot_be_met_says_which_can() {
    let message =
        module(&mrpc(), Selection::Budget(0.1), Unselected::Share).expect_err("too small").to_string();
    assert_eq!(
        message,
        "budget 0.1 cannot be met: the shared pairs alone need 4 of plain LoRA's 24 parameters; \
         the smallest budget is 0.1667"
    );
    assert!(module(&mrpc(), Selection::Budget(0.1667), Unselected::Share).is_ok());
    let message =
        module(&mrpc(), Selection::Budget(0.05), Unselected::Drop).expect_err("too small").to_string();
    assert!(message.contains("the smallest budget is 0.0834"), "{message}");
    assert!(module(&mrpc(), Selection::Budget(0.0834), Unselected::Drop).is_ok());
}

#[test]
fn named_layers_are_kept_whatever_their_scores() {
    let assignment = share(&mrpc(), Selection::Layers(vec![4, 0]));
    assert_eq!((kept(&assignment, Query), kept(&assignment, Value)), (vec![0, 4], vec![0, 4]));
    let modules: Vec<ModuleId> = assignment.owners.keys().copied().collect();
    assert_eq!(Assignment::of_layers(modules, &[4, 0], Unselected::Share.into()).expect("valid"), assignment);
    // Scores do not matter here, not even when all are zero.
    let silent = scored(&[(Query, &[0.0, 0.0])]);
    let dropped = module(&silent, Selection::Layers(vec![1]), Unselected::Drop).expect("valid");
    assert_eq!(dropped.owners[&ModuleId { layer: 0, kind: Query }], Owner::None);
}

#[test]
fn impossible_choices_are_usage_errors() {
    let refuse = |selection: Selection, unselected, expected: &str| match module(
        &mrpc(),
        selection.clone(),
        unselected,
    ) {
        Err(Error::Usage(message)) => assert!(message.contains(expected), "{message}"),
        other => panic!("{selection:?}: {other:?}"),
    };
    for t in [0.0, -1.0, 1.5, f64::NAN, f64::INFINITY] {
        refuse(Selection::Threshold(t), Unselected::Share, "must be above 0 and at most 1");
        refuse(Selection::Budget(t), Unselected::Share, "must be above 0 and at most 1");
    }
    refuse(Selection::TopK(7), Unselected::Share, "`top_k = 7` is more than the 6 layers");
    refuse(Selection::TopK(0), Unselected::Drop, "no LoRA at all");
    refuse(
        Selection::Layers(vec![5, 6]),
        Unselected::Share,
        "names layer 6, but the model's layers are 0 to 5",
    );
}

#[test]
fn scores_that_say_nothing_are_errors() {
    let refuse = |scores: &[(ModuleKind, &[f64])], expected: &str| match module(
        &scored(scores),
        Selection::Threshold(0.9),
        Unselected::Share,
    ) {
        Err(Error::Input(message)) => assert!(message.contains(expected), "{message}"),
        other => panic!("{scores:?}: {other:?}"),
    };
    refuse(&[(Query, &[1.0]), (Value, &[0.0])], "the scores of every value are all zero: train longer");
    refuse(&[(Query, &[1.0, f64::NAN])], "the score of layer 1 query is NaN");
    refuse(&[(Query, &[-1.0, 2.0])], "the score of layer 0 query is -1");
    refuse(&[(Query, &[f64::INFINITY])], "inf");
    refuse(&[(Query, &[f64::MAX, f64::MAX])], "too large");
    refuse(&[], "no module was scored");
    let mut twice = mrpc();
    twice.modules[1] = twice.modules[0].clone();
    let message = module(&twice, Selection::TopK(1), Unselected::Share).expect_err("twice").to_string();
    assert_eq!(message, "layer 0 query is scored twice");
}

#[test]
fn the_serialised_form_is_read_back() {
    let assignment = share(&mrpc(), Selection::Threshold(0.9));
    let text = serde_json::to_string(&assignment).expect("serialisable");
    assert!(text.starts_with(r#"[{"layer":0,"kind":"query","owner":"shared"}"#), "{text}");
    assert_eq!(serde_json::from_str::<Assignment>(&text).expect("readable"), assignment);
    let twice = r#"[{"layer":0,"kind":"key","owner":"own"},{"layer":0,"kind":"key","owner":"none"}]"#;
    let message = serde_json::from_str::<Assignment>(twice).expect_err("twice").to_string();
    assert!(message.contains("layer 0 key occurs twice"), "{message}");
}

/// Scores of one to twelve layers for one to three module types, none of them all zero; ties and
/// zeros are likely.
fn any_scores() -> impl Strategy<Value = Importance> {
    let score = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0f64, 0.0..1e6f64];
    (1..=12usize, 1..=3usize)
        .prop_flat_map(move |(layers, kinds)| {
            prop::collection::vec(prop::collection::vec(score.clone(), layers), kinds)
        })
        .prop_map(|mut rows| {
            for row in &mut rows {
                row[0] += 1e-3;
            }
            let kinds = [Query, Value, Intermediate];
            scored(&rows.iter().zip(kinds).map(|(row, kind)| (kind, row.as_slice())).collect::<Vec<_>>())
        })
}

fn any_scope() -> impl Strategy<Value = Scope> {
    prop_oneof![Just(Scope::Module), Just(Scope::Layer)]
}

fn any_unselected() -> impl Strategy<Value = Unselected> {
    prop_oneof![Just(Unselected::Share), Just(Unselected::Scale), Just(Unselected::Drop)]
}

/// With `Scale`, shared pairs are larger, and each module has two values of its own.
fn sizes(unselected: Unselected) -> impl Fn(ModuleKind) -> Sizes + Copy {
    move |kind| match unselected {
        Unselected::Scale => Sizes { shared: size(kind).own + 3, each: 2, ..size(kind) },
        Unselected::Share | Unselected::Drop => size(kind),
    }
}

fn own(assignment: &Assignment) -> BTreeSet<ModuleId> {
    assignment.owners.iter().filter(|(_, o)| **o == Owner::Own).map(|(id, _)| *id).collect()
}

/// For each ranking, the sum of its kept candidates' shares and the smallest of them.
fn kept_shares(importance: &Importance, assignment: &Assignment, scope: Scope) -> Vec<(f64, f64)> {
    let kept = own(assignment);
    let rankings = ranking::rankings(importance, scope).expect("valid scores");
    rankings
        .iter()
        .map(|ranking| {
            let shares =
                || ranking.iter().filter(|c| c.modules.iter().all(|id| kept.contains(id))).map(|c| c.share);
            (shares().sum(), shares().fold(f64::INFINITY, f64::min))
        })
        .collect()
}

proptest! {
    #[test]
    fn every_module_is_there_once(
        importance in any_scores(), scope in any_scope(), unselected in any_unselected(), t in 0.01..=1.0f64,
    ) {
        let assignment = assign(&importance, Selection::Threshold(t), scope, unselected.into(), size).expect("valid");
        let expected: BTreeSet<ModuleId> =
            importance.modules.iter().map(|m| ModuleId { layer: m.layer, kind: m.kind }).collect();
        prop_assert_eq!(assignment.owners.keys().copied().collect::<BTreeSet<_>>(), expected);
    }

    #[test]
    fn the_threshold_is_reached_with_as_few_as_possible(
        importance in any_scores(), scope in any_scope(), t in 0.01..0.999f64,
    ) {
        let assignment = assign(&importance, Selection::Threshold(t), scope, Unselected::Share.into(), size).expect("valid");
        for (sum, smallest) in kept_shares(&importance, &assignment, scope) {
            prop_assert!(sum >= t - 1e-9);
            prop_assert!(sum - smallest < t);
        }
    }

    #[test]
    fn the_budget_is_never_exceeded_and_as_much_as_fits_is_kept(
        importance in any_scores(), scope in any_scope(), unselected in any_unselected(), f in 0.01..=1.0f64,
    ) {
        let rest = Rest::from(unselected);
        let rankings = ranking::rankings(&importance, scope).expect("valid scores");
        let modules: Vec<ModuleId> =
            importance.modules.iter().map(|m| ModuleId { layer: m.layer, kind: m.kind }).collect();
        // Every prefix of the order that is a valid selection, and its cost.
        let order = budget::order(&rankings);
        let start = |length: usize| -> Assignment {
            let kept = order[..length].iter().flat_map(|c| &c.modules).copied().collect();
            Assignment::keeping(&kept, modules.clone(), rest)
        };
        let sizes = sizes(unselected);
        let limit = f * start(0).plain_parameters(sizes) as f64 * (1.0 + 1e-9);
        let least = usize::from(unselected == Unselected::Drop);
        let longest = (least..=order.len()).map(start).rfind(|a| a.unique_parameters(sizes) as f64 <= limit);
        let chosen = assign(&importance, Selection::Budget(f), scope, rest, sizes);
        prop_assert_eq!(chosen.ok(), longest);
    }

    #[test]
    fn more_threshold_or_budget_keeps_all_that_less_kept(
        importance in any_scores(), scope in any_scope(), unselected in any_unselected(),
        (low, high) in (0.01..=1.0f64, 0.01..=1.0f64).prop_map(|(x, y)| if x < y { (x, y) } else { (y, x) }),
    ) {
        let choose = |selection| assign(&importance, selection, scope, unselected.into(), sizes(unselected)).map(|a| own(&a));
        let less = choose(Selection::Threshold(low)).expect("valid");
        prop_assert!(less.is_subset(&choose(Selection::Threshold(high)).expect("valid")));
        if let Ok(less) = choose(Selection::Budget(low)) {
            prop_assert!(less.is_subset(&choose(Selection::Budget(high)).expect("more than enough")));
        }
    }
}
