//! Progress on a terminal, after two seconds; silence elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lifeboat_units::{Note, Progress, Stage, Work};

/// What takes less than this needs no bar.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shows a job's progress.
pub(crate) struct Terminal {
    visible: bool,
    state: Mutex<State>,
}

struct State {
    began: Instant,
    stage: Option<Stage>,
    total: Option<Work>,
    done: u64,
    bar: Option<ProgressBar>,
}

impl Terminal {
    /// A bar on standard error when that is a terminal and `wanted`; warnings always.
    pub fn new(wanted: bool) -> Self {
        let state = State { began: Instant::now(), stage: None, total: None, done: 0, bar: None };
        Self { visible: wanted && std::io::stderr().is_terminal(), state: Mutex::new(state) }
    }
}

impl State {
    fn show(&mut self) {
        if self.bar.is_some() || self.began.elapsed() < PATIENCE {
            return;
        }
        let Some(stage) = self.stage else { return };
        let bytes = matches!(self.total, Some(Work::Bytes(_)));
        let template = match (self.total, bytes) {
            (None, _) => "{spinner} {msg} {elapsed}",
            (_, true) => {
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
            }
            (_, false) => "{msg} {wide_bar} {human_pos}/{human_len} {eta}",
        };
        let bar = match self.total {
            Some(total) => ProgressBar::new(total.amount()),
            None => ProgressBar::new_spinner(),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(stage.words());
        bar.set_position(self.done);
        bar.enable_steady_tick(Duration::from_millis(500));
        self.bar = Some(bar);
    }
}

impl Progress for Terminal {
    fn stage(&self, stage: Stage, total: Option<Work>) {
        if !self.visible {
            return;
        }
        let Ok(mut state) = self.state.lock() else { return };
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        (state.stage, state.total, state.done) = (Some(stage), total, 0);
        state.show();
    }

    fn advance(&self, done: Work) {
        if !self.visible {
            return;
        }
        let Ok(mut state) = self.state.lock() else { return };
        state.done += done.amount();
        state.show();
        if let Some(bar) = &state.bar {
            bar.set_position(state.done);
        }
    }

    fn warn(&self, note: &Note) {
        let say = || drop(writeln!(std::io::stderr(), "warning: {}", note.message));
        match self.state.lock().ok().and_then(|state| state.bar.clone()) {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Ok(state) = self.state.get_mut()
            && let Some(bar) = state.bar.take()
        {
            bar.finish_and_clear();
        }
    }
}
