//! Problems of textbooks and papers that Gymnasium does not have, under ids of their own.

mod baird;
mod blackjack_state;
mod car_rental;
mod continuous_cartpole;
mod gambler;
mod gridworld;
mod linear_system;
mod maximization_bias;
mod maze;
mod mountain_car;
mod partial_pendulum;
mod random_walk;
mod swing_pendulum;
mod tic_tac_toe;
mod windy_gridworld;

pub use baird::Baird;
pub use blackjack_state::BlackjackState;
pub use car_rental::CarRental;
pub use continuous_cartpole::ContinuousCartPole;
pub use gambler::Gambler;
pub use gridworld::Gridworld;
pub use linear_system::LinearSystem;
pub use maximization_bias::MaximizationBias;
pub use maze::{ChangingMaze, Maze};
pub use mountain_car::MountainCarTextbook;
pub use partial_pendulum::PartialPendulum;
pub use random_walk::RandomWalk;
pub use swing_pendulum::SwingPendulum;
pub use tic_tac_toe::{Side, TicTacToe};
pub use windy_gridworld::{Moves, WindyGridworld};

use crate::{Canvas, Env, Registration, Result, canvas::palette, toy_text::draw_flag, wrappers::TimeLimit};

/// This family's environments. What follows the version is the same problem with other arguments:
/// `-discrete` has a few actions in place of a continuous one, `-kings` moves like a king in chess and
/// `-stochastic` does so in a wind that varies, `-second` plays second and `-both` both sides, `-noiseless` is
/// without noise. `-mbbl` is as that library has it.
pub fn registered() -> Vec<Registration> {
    vec![
        Registration { id: "SwingPendulum-v0", make: || limited(SwingPendulum::new(false)) },
        Registration { id: "SwingPendulum-v0-discrete", make: || limited(SwingPendulum::new(true)) },
        Registration { id: "ContinuousCartPole-v0", make: || limited(ContinuousCartPole::mbrl_lib()) },
        Registration { id: "ContinuousCartPole-v0-mbbl", make: || limited(ContinuousCartPole::mbbl()) },
        Registration { id: "RandomWalk5-v0", make: || limited(RandomWalk::five()) },
        Registration { id: "RandomWalk19-v0", make: || limited(RandomWalk::nineteen()) },
        Registration { id: "RandomWalk1000-v0", make: || limited(RandomWalk::thousand()) },
        Registration { id: "Gridworld-v0", make: || limited(Gridworld::new()) },
        Registration { id: "CarRental-v0", make: || limited(CarRental::new()) },
        Registration { id: "Gambler-v0", make: || limited(Gambler::new(0.4)) },
        Registration { id: "WindyGridworld-v0", make: || limited(WindyGridworld::new(Moves::Four)) },
        Registration { id: "WindyGridworld-v0-kings", make: || limited(WindyGridworld::new(Moves::Kings)) },
        Registration {
            id: "WindyGridworld-v0-stochastic",
            make: || limited(WindyGridworld::new(Moves::KingsInVaryingWind)),
        },
        Registration { id: "BlackjackState-v0", make: || limited(BlackjackState::new()) },
        Registration { id: "MaximizationBias-v0", make: || limited(MaximizationBias::new()) },
        Registration { id: "DynaMaze-v0", make: || limited(Maze::dyna()) },
        Registration { id: "BlockingMaze-v0", make: || limited(ChangingMaze::blocking()) },
        Registration { id: "ShortcutMaze-v0", make: || limited(ChangingMaze::shortcut()) },
        Registration { id: "Baird-v0", make: || limited(Baird::new()) },
        Registration { id: "TicTacToe-v0", make: || limited(TicTacToe::new(Side::First)) },
        Registration { id: "TicTacToe-v0-second", make: || limited(TicTacToe::new(Side::Second)) },
        Registration { id: "TicTacToe-v0-both", make: || limited(TicTacToe::new(Side::Both)) },
        Registration { id: "DoubleIntegrator-v0", make: || limited(LinearSystem::double_integrator()) },
        Registration { id: "LaplacianSystem-v0", make: || limited(LinearSystem::laplacian(true)) },
        Registration { id: "LaplacianSystem-v0-noiseless", make: || limited(LinearSystem::laplacian(false)) },
        Registration { id: "MountainCarTextbook-v0", make: || limited(MountainCarTextbook::new()) },
        Registration { id: "PartialPendulum-v0", make: || limited(PartialPendulum::new()) },
    ]
}

fn limited(env: impl Env + 'static) -> Result<Box<dyn Env>> {
    Ok(Box::new(TimeLimit::new(env)))
}

/// Draws a grid whose field `row · columns + column` is counted from the top left: the fields that are
/// no `wall`, a flag on each of `goals` and the agent on `state`.
fn draw_grid(
    canvas: &mut Canvas,
    (rows, columns): (usize, usize),
    wall: impl Fn(usize) -> bool,
    goals: &[usize],
    state: usize,
) {
    let place = |field: usize| ((field % columns) as f64, (rows - 1 - field / columns) as f64);
    canvas.clear(palette::WHITE);
    canvas.fit(0.0, 0.0, columns as f64, rows as f64);
    for field in 0..rows * columns {
        let (x, y) = place(field);
        let color = if wall(field) { palette::GREY } else { palette::LIGHT_GREY };
        canvas.rectangle(x + 0.02, y + 0.02, 0.96, 0.96, color);
    }
    for &goal in goals {
        let (x, y) = place(goal);
        draw_flag(canvas, (x + 0.35, y + 0.12), 0.75, palette::GREEN);
    }
    let (x, y) = place(state);
    canvas.circle(x + 0.5, y + 0.5, 0.25, palette::VERMILLION);
}

/// What the tests of several files ask of a model: V*, by Bellman's optimality equation, repeated.
#[cfg(test)]
fn optimal_values(model: &crate::TransitionModel, gamma: f64, sweeps: usize) -> Vec<f64> {
    let mut values = vec![0.0; model.outcomes.len()];
    for _ in 0..sweeps {
        for state in 0..values.len() {
            let of_action = |outcomes: &Vec<crate::Outcome>| -> f64 {
                let of = |o: &crate::Outcome| {
                    o.probability * (o.reward + if o.terminated { 0.0 } else { gamma * values[o.next_state] })
                };
                outcomes.iter().map(of).sum()
            };
            values[state] = model.outcomes[state].iter().map(of_action).fold(f64::NEG_INFINITY, f64::max);
        }
    }
    values
}
