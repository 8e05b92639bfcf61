//! The live terminal dashboard of kvd.
//!
//! [`feed`] brings [`event`]s from the network, [`keymap`] makes them of keys; [`app`] takes them
//! in and keeps the [`state`]; [`view`] draws it; [`terminal`] is the screen and [`once`] a single
//! frame for scripts.

pub mod app;
pub mod args;
pub mod event;
pub mod feed;
pub mod keymap;
pub mod once;
pub mod state;
pub mod terminal;
pub mod view;
