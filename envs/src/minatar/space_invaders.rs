//! Space Invaders: shoot wave after wave of marching aliens before they land.

use super::{Cells, Color, Draws, Fields, Frame, Game, Move, Result, SIDE, Step, palette};

const BOTTOM: i32 = SIDE - 1; // the cannon's row
const WAVE: Cells = Cells::block((2, 7), (0, 3)); // 24 aliens
const MOVE_INTERVAL: i32 = 12; // steps between two moves of the first wave
const SHORTEST_MOVE_INTERVAL: i32 = 6; // steps, reached by ramping
const ALIEN_GUN_INTERVAL: i32 = 10; // steps
const GUN_INTERVAL: i32 = 5; // steps

/// The state, as numbers: the cannon's column, the aliens of each row, their heading, the wave's
/// move interval, the alien move and gun countdowns, the player's and the enemy's shots of each
/// row, the cannon's gun countdown and the ramp level.
#[derive(Debug, Clone)]
pub struct SpaceInvaders {
    cannon: i32,
    aliens: Cells,
    dx: i32, // −1 to the left, +1 to the right
    wave_interval: i32,
    move_countdown: i32,
    alien_gun_countdown: i32,
    player_shots: Cells,
    enemy_shots: Cells,
    gun_countdown: i32,
    ramp_level: i32,
}

impl SpaceInvaders {
    fn cannon_cell(&self) -> Cells {
        Cells::cell(self.cannon, BOTTOM)
    }

    fn march(&mut self, step: &mut Step) {
        // The fewer aliens are left, the faster they go.
        self.move_countdown = self.wave_interval.min(self.aliens.len());
        let edge = if self.dx < 0 { 0 } else { SIDE - 1 };
        if self.aliens.meets(Cells::column(edge)) {
            self.dx = -self.dx;
            step.terminated |= self.aliens.meets(Cells::row(BOTTOM));
            self.aliens = self.aliens.down_around();
        } else {
            self.aliens = if self.dx < 0 { self.aliens.left() } else { self.aliens.right() };
        }
        step.terminated |= self.aliens.meets(self.cannon_cell());
    }

    /// The alien that shoots: the lowest in the column nearest to the cannon, the left one of two
    /// equally near.
    fn shooter(&self) -> Option<Cells> {
        let distances = (0..SIDE).flat_map(|distance| [self.cannon - distance, self.cannon + distance]);
        let column = distances
            .filter(|x| (0..SIDE).contains(x))
            .map(|x| self.aliens.and(Cells::column(x)))
            .find(|column| !column.is_empty())?;
        column.iter().last().map(|(x, y)| Cells::cell(x, y))
    }
}

impl Game for SpaceInvaders {
    const NAME: &'static str = "SpaceInvaders";
    const MINIMAL_ACTIONS: &'static [Move] = &[Move::Stay, Move::Left, Move::Right, Move::Fire];
    // cannon, alien, alien heading left, alien heading right, player's shot, enemy's shot
    const COLORS: &'static [Color] =
        &[palette::BLUE, palette::GREEN, palette::SKY, palette::PURPLE, palette::ORANGE, palette::VERMILLION];

    fn new() -> Self {
        Self {
            cannon: 5,
            aliens: WAVE,
            dx: -1,
            wave_interval: MOVE_INTERVAL,
            move_countdown: MOVE_INTERVAL,
            alien_gun_countdown: ALIEN_GUN_INTERVAL,
            player_shots: Cells::NONE,
            enemy_shots: Cells::NONE,
            gun_countdown: 0,
            ramp_level: 0,
        }
    }

    fn reset(&mut self, _draws: &mut impl Draws) {
        *self = Self::new();
    }

    fn step(&mut self, action: Move, ramping: bool, _draws: &mut impl Draws) -> Step {
        let mut step = Step::default();
        match action {
            Move::Fire if self.gun_countdown == 0 => {
                self.player_shots.insert(self.cannon_cell());
                self.gun_countdown = GUN_INTERVAL;
            }
            Move::Left => self.cannon = (self.cannon - 1).max(0),
            Move::Right => self.cannon = (self.cannon + 1).min(SIDE - 1),
            _ => {}
        }
        self.player_shots = self.player_shots.up();
        self.enemy_shots = self.enemy_shots.down();
        step.terminated |= self.enemy_shots.meets(self.cannon_cell());
        step.terminated |= self.aliens.meets(self.cannon_cell());
        if self.move_countdown == 0 {
            self.march(&mut step);
        }
        if self.alien_gun_countdown == 0 {
            self.alien_gun_countdown = ALIEN_GUN_INTERVAL;
            if let Some(shooter) = self.shooter() {
                self.enemy_shots.insert(shooter);
            }
        }
        let hits = self.aliens.and(self.player_shots);
        step.reward += f64::from(hits.len());
        self.aliens.remove(hits);
        self.player_shots.remove(hits);
        self.gun_countdown = (self.gun_countdown - 1).max(0);
        self.move_countdown -= 1;
        self.alien_gun_countdown -= 1;
        if self.aliens.is_empty() {
            if ramping && self.wave_interval > SHORTEST_MOVE_INTERVAL {
                self.wave_interval -= 1;
                self.ramp_level += 1;
            }
            self.aliens = WAVE;
        }
        step
    }

    fn paint(&self, frame: &mut Frame<'_>) {
        frame.set(0, self.cannon, BOTTOM);
        frame.set_all(1, self.aliens);
        frame.set_all(if self.dx < 0 { 2 } else { 3 }, self.aliens);
        frame.set_all(4, self.player_shots);
        frame.set_all(5, self.enemy_shots);
    }

    fn fields(&mut self, _terminated: bool, fields: &mut Fields<'_>) -> Result<()> {
        let levels = MOVE_INTERVAL - SHORTEST_MOVE_INTERVAL;
        fields.integer("cannon column", &mut self.cannon, 0..=SIDE - 1)?;
        fields.cells("aliens", &mut self.aliens, 0..=BOTTOM)?;
        fields.ensure(!self.aliens.is_empty(), "no aliens")?;
        fields.direction("alien heading", &mut self.dx)?;
        fields.integer(
            "wave move interval",
            &mut self.wave_interval,
            SHORTEST_MOVE_INTERVAL..=MOVE_INTERVAL,
        )?;
        fields.integer("alien move countdown", &mut self.move_countdown, 0..=MOVE_INTERVAL)?;
        fields.integer("alien gun countdown", &mut self.alien_gun_countdown, 0..=ALIEN_GUN_INTERVAL)?;
        fields.cells("player shots", &mut self.player_shots, 0..=BOTTOM)?;
        fields.cells("enemy shots", &mut self.enemy_shots, 0..=BOTTOM)?;
        fields.integer("cannon's gun countdown", &mut self.gun_countdown, 0..=GUN_INTERVAL)?;
        fields.integer("ramp level", &mut self.ramp_level, 0..=levels)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Script, channel, play, step};
    use super::*;

    fn cells<const N: usize>(cells: [(i32, i32); N]) -> Cells {
        cells.iter().fold(Cells::NONE, |mut set, &(x, y)| {
            set.insert(Cells::cell(x, y));
            set
        })
    }

    #[test]
    fn an_alien_in_the_cannons_cell_ends_the_episode() {
        // The cannon moves into it, before any march.
        let mut game = SpaceInvaders { aliens: cells([(4, 9)]), ..SpaceInvaders::new() };
        assert_eq!(play(&mut game, Move::Left, &[]), step(0.0, true));
        // It marches into the cannon.
        let marching = SpaceInvaders { move_countdown: 0, ..SpaceInvaders::new() };
        let mut game = SpaceInvaders { aliens: cells([(6, 9)]), ..marching.clone() };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, true));
        // It comes down on the cannon, with another at the edge.
        let mut game = SpaceInvaders { aliens: cells([(0, 3), (5, 8)]), ..marching.clone() };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, true));
        // In row 9 beside the cannon it is harmless while it marches sideways.
        let mut game = SpaceInvaders { aliens: cells([(3, 9)]), ..marching };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, false));
        assert_eq!(channel(&game, 1), [(2, 9)]);
    }

    #[test]
    fn aliens_in_the_last_row_end_the_episode_when_they_turn_and_reenter_on_top() {
        let aliens = cells([(0, 3), (7, 9)]);
        let mut game = SpaceInvaders { aliens, move_countdown: 0, ..SpaceInvaders::new() };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, true));
        assert_eq!(channel(&game, 1), [(7, 0), (0, 4)]);
        assert_eq!(channel(&game, 3), channel(&game, 1), "they head right now");
        assert_eq!(game.move_countdown, 1, "two aliens are left");
    }

    #[test]
    fn the_move_interval_falls_with_each_wave_down_to_six() {
        let mut game = SpaceInvaders::new();
        for interval in [11, 10, 9, 8, 7, 6, 6, 6] {
            game.aliens = cells([(5, 3)]);
            game.player_shots = cells([(5, 4)]);
            (game.dx, game.move_countdown) = (1, 7);
            assert_eq!(play(&mut game, Move::Stay, &[]), step(1.0, false));
            assert_eq!(channel(&game, 1).len(), 24);
            assert_eq!((game.wave_interval, game.dx, game.move_countdown), (interval, 1, 6));
            game.enemy_shots = Cells::NONE;
        }
        assert_eq!(game.ramp_level, 6);

        let mut game = SpaceInvaders { aliens: cells([(5, 3)]), ..SpaceInvaders::new() };
        game.player_shots = cells([(5, 4)]);
        game.step(Move::Stay, false, &mut Script(&[]));
        assert_eq!((game.wave_interval, game.aliens), (12, WAVE), "ramping is off");
    }

    #[test]
    fn the_nearest_column_shoots_and_the_left_one_of_two() {
        for (aliens, shot) in [
            (cells([(3, 1), (3, 4), (7, 6)]), (3, 4)),
            (cells([(3, 1), (6, 0), (6, 2), (9, 8)]), (6, 2)),
            (cells([(9, 0)]), (9, 0)),
        ] {
            let mut game = SpaceInvaders { aliens, alien_gun_countdown: 0, ..SpaceInvaders::new() };
            play(&mut game, Move::Stay, &[]);
            assert_eq!(channel(&game, 5), [shot]);
        }
    }

    #[test]
    fn an_enemy_shot_kills_in_the_cannons_cell_and_vanishes_below_it() {
        let mut game = SpaceInvaders { enemy_shots: cells([(5, 8), (2, 9)]), ..SpaceInvaders::new() };
        assert_eq!(play(&mut game, Move::Stay, &[]), step(0.0, true));
        assert_eq!(channel(&game, 5), [(5, 9)]);
    }
}
