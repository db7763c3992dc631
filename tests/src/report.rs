//! placeholder
use anyhow::Result;
/// Flags of `report`.
#[derive(clap::Args, Debug)]
pub struct ReportArgs {}
/// x
pub fn report(_: ReportArgs) -> Result<()> {
    Ok(())
}
