//! Rewrites a card for the hub: it names the repository and the base model there, and no folder of
//! this machine.

use std::path::Path;

use super::escape::{code, quoted, shell, yaml};
use super::python::THIS_FOLDER;
use super::{Base, name_of, unsigned};

/// Placeholder for the folder of a base model that is not on the hub.
const SOME_PLACE: &str = "path/to/";

/// Returns the card `text` for the repository `id`. `base` is the base model as the adapter names
/// it, and `hub_base` its name on the hub if that is known. Text that somebody wrote is left as it
/// is wherever it names neither.
pub fn pushed(text: &str, id: &str, base: &str, hub_base: Option<&str>) -> String {
    let mut card = unsigned(text).unwrap_or(text).to_string();
    for line in ["adapter", "folder"] {
        card = card.replace(&format!("{line} = \".\"{THIS_FOLDER}\n"), &format!("{line} = {}\n", quoted(id)));
    }
    if let Some(hub_base) = hub_base {
        card = with_base(&card, hub_base);
    }
    if !base.is_empty() {
        let own = Base::new(base, Path::new(base));
        if !own.on_hub {
            card = without_path(&card, &own, hub_base);
        }
    }
    let (start, name) = ("model-index:\n- name: ", id.rsplit('/').next().unwrap_or(id));
    if let Some((before, after)) = card.split_once(start)
        && let Some((_, after)) = after.split_once('\n')
    {
        card = format!("{before}{start}{}\n{after}", yaml(name));
    }
    card
}

/// Replaces a folder of this machine by the name on the hub, or by a place that readers have to
/// fill in.
fn without_path(card: &str, own: &Base, hub_base: Option<&str>) -> String {
    let some_place = |path: &str| format!("{SOME_PLACE}{}", name_of(Path::new(path)));
    let place = hub_base.map_or_else(|| some_place(&own.place), str::to_string);
    let model = hub_base.map_or_else(|| some_place(&own.model), str::to_string);
    let mut card = card.to_string();
    if let Some(name) = hub_base {
        let folder = super::in_folder(&own.place);
        card = card.replace(&folder, &super::on_hub(name));
    }
    for write in [quoted, code, shell, str::to_string] {
        // A GGUF file's path begins with that of its folder, so it is replaced first.
        card = card.replace(&write(&own.model), &write(&model)).replace(&write(&own.place), &write(&place));
    }
    card
}

/// Returns the card with this base model in its front matter, if it has front matter.
fn with_base(card: &str, base: &str) -> String {
    let Some(rest) = card.strip_prefix("---\n") else { return card.to_string() };
    let Some((front, body)) = rest.split_once("\n---") else { return card.to_string() };
    let mut inside = false;
    let others = front.lines().filter(|line| {
        let belongs = line.starts_with(['-', ' ']);
        inside = line.starts_with("base_model:") || inside && belongs;
        !inside
    });
    let others: String = others.map(|line| format!("{line}\n")).collect();
    format!("---\nbase_model: {}\n{others}---{body}", yaml(base))
}

#[cfg(test)]
mod tests {
    use super::super::signed;
    use super::*;

    const CARD: &str = "---\nbase_model:\n- old/one\nlibrary_name: peft\nmodel-index:\n- name: run\n  results: []\n---\n\
                        text on `old/one`\nadapter = \".\"  # this folder\nbase = \"/home/me/a b/minilm\"\n\
                        lora-drop --model '/home/me/a b/minilm'\n";

    #[test]
    fn a_card_names_what_is_on_the_hub() {
        let base = "/home/me/a b/minilm";
        let card = pushed(&signed(CARD), "org/mine", base, Some("new/base"));
        assert_eq!(
            card,
            "---\nbase_model: new/base\nlibrary_name: peft\nmodel-index:\n- name: mine\n  results: []\n---\n\
             text on `old/one`\nadapter = \"org/mine\"\nbase = \"new/base\"\nlora-drop --model new/base\n"
        );
        let card = pushed(&signed(CARD), "org/mine", base, None);
        assert!(card.contains("base = \"path/to/minilm\"\nlora-drop --model path/to/minilm\n"), "{card}");
        assert!(card.contains("base_model:\n- old/one\n") && !card.contains("/home/me"), "{card}");
    }

    #[test]
    fn a_card_that_a_user_wrote_is_unchanged() {
        let own = "# Mine\n\nNo front matter, and a line\n---\nof dashes.\n";
        assert_eq!(pushed(own, "org/mine", "", Some("new/base")), own);
    }
}
