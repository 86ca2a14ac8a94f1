//! Density of points: a sum of Gaussians on a grid, and the outlines of the regions that hold a share of it.

/// Grid lines in each direction.
const SIDE: usize = 64;
/// Standard deviation of a Gaussian, in cells, and its cut-off.
const DEVIATION: f64 = 1.6;
const REACH: f64 = 3.0 * DEVIATION;
/// Distance that points must keep from the sides of the square, so that their Gaussians end within it.
pub const MARGIN: f64 = (REACH + 1.0) / (SIDE - 1) as f64;

/// Density at the crossings of the grid on the unit square, (SIDE, SIDE), row by row.
pub struct Density(Vec<f64>);

impl Density {
    /// Density of points in the unit square, at least [`MARGIN`] from its sides.
    pub fn of(points: impl Iterator<Item = [f64; 2]>) -> Density {
        let mut heights = vec![0.0; SIDE * SIDE];
        for point in points {
            let [x, y] = point.map(|value| value * (SIDE - 1) as f64);
            for row in (y - REACH).ceil() as usize..=(y + REACH) as usize {
                for column in (x - REACH).ceil() as usize..=(x + REACH) as usize {
                    let squared = (column as f64 - x).powi(2) + (row as f64 - y).powi(2);
                    heights[row * SIDE + column] += (-squared / (2.0 * DEVIATION * DEVIATION)).exp();
                }
            }
        }
        Density(heights)
    }

    /// Closed outlines, in the unit square, of the smallest region that holds this share, in (0, 1), of the mass; an outline
    /// within another is a hole. Empty without points.
    pub fn outlines(&self, share: f64) -> Vec<Vec<[f64; 2]>> {
        let mut falling = self.0.clone();
        falling.sort_by(|a, b| b.total_cmp(a));
        let wanted = share * falling.iter().sum::<f64>();
        let mut held = 0.0;
        let level = falling.into_iter().find(|height| {
            held += height;
            held >= wanted
        });
        self.trace(level.filter(|&level| level > 0.0).unwrap_or(f64::INFINITY))
    }

    /// Marching squares: the outline crosses a grid edge with one end below the level. Within each cell it runs from the edge
    /// where it leaves the region, going clockwise round the cell, to the edge where it re-enters it.
    fn trace(&self, level: f64) -> Vec<Vec<[f64; 2]>> {
        // The index of an edge is twice that of the crossing it starts from, plus one if it goes down.
        let mut next = vec![usize::MAX; 2 * SIDE * SIDE];
        for cell in (0..SIDE - 1).flat_map(|row| (0..SIDE - 1).map(move |column| row * SIDE + column)) {
            let heights = [cell, cell + 1, cell + SIDE + 1, cell + SIDE].map(|corner| self.0[corner]);
            let inside = heights.map(|height| height >= level);
            let edges = [2 * cell, 2 * (cell + 1) + 1, 2 * (cell + SIDE), 2 * cell + 1];
            let comes_back = |side: &usize| !inside[side % 4] && inside[(side + 1) % 4];
            // If two opposite corners are inside, the mean of the cell decides whether they are joined.
            let joined = heights.iter().sum::<f64>() / 4.0 >= level;
            for side in (0..4).filter(|side| inside[*side] && !inside[(side + 1) % 4]) {
                let back = if joined { (side + 1..side + 4).find(comes_back) } else { (side + 1..side + 4).rfind(comes_back) };
                next[edges[side]] = edges[back.expect("an outline that leaves re-enters") % 4];
            }
        }
        let mut outlines = Vec::new();
        for start in 0..next.len() {
            let (mut outline, mut edge) = (Vec::new(), start);
            while next[edge] != usize::MAX {
                outline.push(self.crossing(edge, level));
                edge = std::mem::replace(&mut next[edge], usize::MAX);
            }
            outlines.extend(Some(outline).filter(|outline| !outline.is_empty()));
        }
        outlines
    }

    /// The point on an edge where the density equals the level.
    fn crossing(&self, edge: usize, level: f64) -> [f64; 2] {
        let (from, down) = (edge / 2, edge % 2);
        let to = from + if down == 1 { SIDE } else { 1 };
        let part = (level - self.0[from]) / (self.0[to] - self.0[from]);
        let (x, y) = ((from % SIDE) as f64, (from / SIDE) as f64);
        let at = if down == 1 { [x, y + part] } else { [x + part, y] };
        at.map(|value| value / (SIDE - 1) as f64)
    }
}
