//! In what the ledger is kept: needed to read it without the configuration.

use rusqlite::{Connection, OptionalExtension};

use super::{Database, DatabaseError};

const CURRENCY: &str = "currency";
const TIME_ZONE: &str = "time_zone";

/// In what the ledger is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// ISO 4217 code of all money.
    pub currency: String,
    /// IANA name of the zone of days and months.
    pub time_zone: String,
}

impl Database {
    /// Writes in what the ledger is kept from now on, and returns what was said before. Rows are not
    /// converted: if the currency was another one, somebody must be told.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn write_meta(&mut self, meta: &Meta) -> Result<Option<Meta>, DatabaseError> {
        let before = read(&self.connection)?;
        if before.as_ref() != Some(meta) {
            let transaction = self.connection.transaction()?;
            let put = "INSERT OR REPLACE INTO meta VALUES (?1, ?2)";
            transaction.execute(put, [CURRENCY, &meta.currency])?;
            transaction.execute(put, [TIME_ZONE, &meta.time_zone])?;
            transaction.commit()?;
        }
        Ok(before)
    }
}

/// Nothing until a gateway has written it.
pub(super) fn read(connection: &Connection) -> Result<Option<Meta>, DatabaseError> {
    let mut statement = connection.prepare("SELECT value FROM meta WHERE key = ?1")?;
    let mut value = |key: &str| statement.query_row([key], |row| row.get(0)).optional();
    let (currency, time_zone) = (value(CURRENCY)?, value(TIME_ZONE)?);
    Ok(currency.zip(time_zone).map(|(currency, time_zone)| Meta {
        currency,
        time_zone,
    }))
}
