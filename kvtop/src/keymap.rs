//! Which key does what. The help is made from this table, so it cannot differ.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Down,
    Up,
    First,
    Last,
    Enter,
    Release,
    Overview,
    Ring,
    Lag,
    Nodes,
    Moves,
    Pause,
    Slower,
    Faster,
    Help,
    Quit,
}

/// One line of the help.
#[derive(Debug)]
pub struct Binding {
    pub action: Action,
    /// The keys as people call them.
    pub keys: &'static str,
    pub does: &'static str,
    /// The short form in the last line of the screen; empty when it is not there.
    pub hint: &'static str,
    codes: &'static [KeyCode],
}

/// Every key there is, except Ctrl-C, which is [`Action::Quit`] too.
pub const BINDINGS: [Binding; 16] = [
    Binding {
        action: Action::Down,
        keys: "j, down",
        does: "select the next node; in moves: scroll",
        hint: "j/k node",
        codes: &[KeyCode::Char('j'), KeyCode::Down],
    },
    Binding {
        action: Action::Up,
        keys: "k, up",
        does: "select the previous node",
        hint: "",
        codes: &[KeyCode::Char('k'), KeyCode::Up],
    },
    Binding {
        action: Action::First,
        keys: "g, Home",
        does: "select the first node",
        hint: "",
        codes: &[KeyCode::Char('g'), KeyCode::Home],
    },
    Binding {
        action: Action::Last,
        keys: "G, End",
        does: "select the last node",
        hint: "",
        codes: &[KeyCode::Char('G'), KeyCode::End],
    },
    Binding {
        action: Action::Enter,
        keys: "Enter",
        does: "open the node, with all that is known of it",
        hint: "Enter open",
        codes: &[KeyCode::Enter],
    },
    Binding {
        action: Action::Release,
        keys: "Esc",
        does: "out of help or node; else let go of the node, and sort again",
        hint: "",
        codes: &[KeyCode::Esc],
    },
    Binding {
        action: Action::Overview,
        keys: "1",
        does: "overview: can I read and write, what is at risk",
        hint: "1 overview",
        codes: &[KeyCode::Char('1')],
    },
    Binding {
        action: Action::Ring,
        keys: "2",
        does: "ring: who holds what, is it fair",
        hint: "2 ring",
        codes: &[KeyCode::Char('2')],
    },
    Binding {
        action: Action::Lag,
        keys: "3",
        does: "lag: what each replica lacks, since when, is it draining",
        hint: "3 lag",
        codes: &[KeyCode::Char('3')],
    },
    Binding {
        action: Action::Nodes,
        keys: "4",
        does: "nodes, and from there one node",
        hint: "4 nodes",
        codes: &[KeyCode::Char('4')],
    },
    Binding {
        action: Action::Moves,
        keys: "7",
        does: "moves: what is under way, how far, what is stuck and why",
        hint: "7 moves",
        codes: &[KeyCode::Char('7')],
    },
    Binding {
        action: Action::Pause,
        keys: "Space",
        does: "hold the picture, or go on",
        hint: "Space pause",
        codes: &[KeyCode::Char(' ')],
    },
    Binding {
        action: Action::Slower,
        keys: "+",
        does: "longer interval, up to 60 s",
        hint: "+/- interval",
        codes: &[KeyCode::Char('+'), KeyCode::Char('=')],
    },
    Binding {
        action: Action::Faster,
        keys: "-",
        does: "shorter interval, down to 0.25 s",
        hint: "",
        codes: &[KeyCode::Char('-')],
    },
    Binding {
        action: Action::Help,
        keys: "?",
        does: "this help",
        hint: "? help",
        codes: &[KeyCode::Char('?'), KeyCode::F(1)],
    },
    Binding {
        action: Action::Quit,
        keys: "q, Ctrl-C",
        does: "quit",
        hint: "q quit",
        codes: &[KeyCode::Char('q')],
    },
];

/// What `key` asks for, if anything.
pub fn action(key: KeyEvent) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Action::Quit);
    }
    BINDINGS.iter().find(|binding| binding.codes.contains(&key.code)).map(|binding| binding.action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_belongs_to_one_action() {
        for binding in &BINDINGS {
            for code in binding.codes {
                let key = KeyEvent::new(*code, KeyModifiers::NONE);
                assert_eq!(action(key), Some(binding.action), "{code:?}");
            }
        }
    }

    #[test]
    fn control_c_quits_and_other_control_keys_do_nothing() {
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert_eq!(action(control('c')), Some(Action::Quit));
        assert_eq!(action(control('j')), None);
    }
}
