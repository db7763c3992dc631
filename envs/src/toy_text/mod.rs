//! Toy text: small games with few states, most of them with a known transition model.
//!
//! [`Catch`] and [`ShortCorridor`] are not Gymnasium's: bsuite's, shown as an image, and Sutton & Barto's.

mod blackjack;
mod catch;
mod cliff_walking;
mod frozen_lake;
mod short_corridor;
mod tabular;
mod taxi;

pub use blackjack::Blackjack;
pub use catch::Catch;
pub use cliff_walking::CliffWalking;
pub use frozen_lake::FrozenLake;
pub use short_corridor::ShortCorridor;
pub use tabular::{Game, Tabular};
pub use taxi::Taxi;

use crate::{Canvas, Env, Registration, Result, canvas::Color, wrappers::TimeLimit};

/// This family's environments. Ids with a suffix after the version are Gymnasium's environment
/// with other arguments: `-deterministic` is `is_slippery=False`, `-natural` is
/// `natural=True, sab=False` and `-simple` is `natural=False, sab=False`. ShortCorridor-v0 is Sutton
/// & Barto's and not in Gymnasium.
pub fn registered() -> Vec<Registration> {
    vec![
        Registration { id: "FrozenLake-v1", make: || limited(FrozenLake::small(true)?) },
        Registration { id: "FrozenLake-v1-deterministic", make: || limited(FrozenLake::small(false)?) },
        Registration { id: "FrozenLake8x8-v1", make: || limited(FrozenLake::large(true)?) },
        Registration { id: "FrozenLake8x8-v1-deterministic", make: || limited(FrozenLake::large(false)?) },
        Registration { id: "CliffWalking-v1", make: || limited(CliffWalking::new(false)) },
        Registration { id: "CliffWalkingSlippery-v1", make: || limited(CliffWalking::new(true)) },
        Registration { id: "Taxi-v4", make: || limited(Taxi::new()) },
        Registration { id: "Blackjack-v1", make: || limited(Blackjack::new(false, true)) },
        Registration { id: "Blackjack-v1-natural", make: || limited(Blackjack::new(true, false)) },
        Registration { id: "Blackjack-v1-simple", make: || limited(Blackjack::new(false, false)) },
        Registration { id: "Catch-v0", make: || limited(Catch::new()) },
        Registration { id: "ShortCorridor-v0", make: || limited(ShortCorridor::new()) },
    ]
}

fn limited(env: impl Env + 'static) -> Result<Box<dyn Env>> {
    Ok(Box::new(TimeLimit::new(env)))
}

/// A square of side `2 · half` standing on its corner.
fn draw_diamond(canvas: &mut Canvas, (x, y): (f64, f64), half: f64, color: Color) {
    canvas.polygon(&[(x, y - half), (x + half, y), (x, y + half), (x - half, y)], color);
}

/// A flag on a pole whose foot is at `(x, y)`, `height` tall.
pub(crate) fn draw_flag(canvas: &mut Canvas, (x, y): (f64, f64), height: f64, color: Color) {
    let top = y + height;
    canvas.polygon(&[(x, top), (x, top - 0.5 * height), (x + 0.6 * height, top - 0.25 * height)], color);
    canvas.line(&[(x, y), (x, top)], 0.08 * height, crate::canvas::palette::BLACK);
}
