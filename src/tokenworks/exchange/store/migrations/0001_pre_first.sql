-- Step 1: the ledger's view of all journals, and nothing else: it can be built again from them.
-- Quantities are integers in the smallest units of tokenworks.core.units. Documents are JSON.
--
-- How to add a table: a new file beside this one with the next number, NNNN_pre_what.sql (NNNN_post_what.sql when it
-- changes or removes something), in the dialect that both databases share. Types are placeholders, see migrate.WORDS:
--   {int} one row's figure   {sum} a figure that adds up rows   {text} a name or words   {json} a document   {bytes}
--   {serial} the whole definition of a counting key   {keyed} ends a table with its own primary key   {strict} ends
--   one with {serial}. Quote words that PostgreSQL keeps ("offset"). Then its statements in queries.sql, its writing
--   in base.Store, and the test of all named queries asks for nothing more.
-- What only one database needs goes to NNNN_pre_what.postgres.sql or .sqlite.sql of the same number.

CREATE TABLE meta (key {text} PRIMARY KEY, value {text} NOT NULL) {keyed};

-- How far each writer's journal has been applied. One row moves in the same transaction as what it brought.
CREATE TABLE source (
  writer    {text} NOT NULL,
  epoch     {int}  NOT NULL,
  segment   {int}  NOT NULL,
  "offset"  {int}  NOT NULL,
  crc       {int}  NOT NULL,
  dead      {int}  NOT NULL DEFAULT 0,
  PRIMARY KEY (writer, epoch)
) {keyed};

CREATE TABLE account (id {text} PRIMARY KEY, doc {json} NOT NULL) {keyed};
CREATE TABLE budget (
  id {text} PRIMARY KEY, doc {json} NOT NULL,
  spent_ustu {sum} NOT NULL, spent_nano {sum} NOT NULL
) {keyed};
CREATE TABLE api_key (id {text} PRIMARY KEY, doc {json} NOT NULL) {keyed};
CREATE TABLE site (
  name {text} NOT NULL, since_ns {int} NOT NULL, doc {json} NOT NULL,
  PRIMARY KEY (name, since_ns)
) {keyed};
CREATE TABLE hold (
  receipt {text} PRIMARY KEY, writer {text} NOT NULL, epoch {int} NOT NULL, doc {json} NOT NULL
) {keyed};
CREATE TABLE balance (
  book {text} NOT NULL, account {text} NOT NULL, amount {sum} NOT NULL,
  PRIMARY KEY (book, account)
) {keyed};

-- Every line of the three books, in the order in which the ledger took them.
CREATE TABLE entry (
  seq       {serial},
  txn       {int}  NOT NULL,
  book      {text} NOT NULL,
  account   {text} NOT NULL,
  amount    {int}  NOT NULL,
  at_ns     {int}  NOT NULL
) {strict};

-- The document is the settlement as it stands in the journal.
CREATE TABLE receipt (
  id        {text} PRIMARY KEY,
  account   {text} NOT NULL,
  at_ns     {int}  NOT NULL,
  tokens    {int}  NOT NULL,
  output    {int}  NOT NULL,
  ustu      {int}  NOT NULL,
  nano      {int}  NOT NULL,
  loss_ustu {int}  NOT NULL,
  loss_nano {int}  NOT NULL,
  doc       {bytes} NOT NULL,
  -- Its leaf in the receipts log: where it is, and where the account stands after it.
  leaf      {int}  NOT NULL,
  seq       {int}  NOT NULL,
  cum_ustu  {sum}  NOT NULL,
  cum_nano  {sum}  NOT NULL,
  metered   {int}  NOT NULL
) {strict};
CREATE INDEX receipt_account ON receipt (account, at_ns);
-- Settled work that no closed interval has taken yet: what a restarted site agent must still meter.
CREATE INDEX receipt_unmetered ON receipt (at_ns) WHERE metered = 0;

-- What was learnt of an interval later is a row more, whose figures are differences.
CREATE TABLE interval (
  site {text} NOT NULL, start_ns {int} NOT NULL, corrects {int} NOT NULL, end_ns {int} NOT NULL,
  meter_mj {int} NOT NULL, bill_nano {int}, carbon_ug {int}, market_ug {int}, water_ul {int}, idle_embodied_ug {int},
  doc {json} NOT NULL,
  PRIMARY KEY (site, start_ns, corrects)
) {keyed};

CREATE TABLE energy_line (
  receipt {text} NOT NULL, site {text} NOT NULL, start_ns {int} NOT NULL, corrects {int} NOT NULL,
  energy_mj {int} NOT NULL, energy_nano {int}, overhead_mj {int} NOT NULL, overhead_nano {int},
  carbon_ug {int}, slice_ns {int} NOT NULL, device_nano {int}, market_ug {int}, water_ul {int}, embodied_ug {int},
  ended {int} NOT NULL, leaf {int} NOT NULL,
  PRIMARY KEY (receipt, site, start_ns, corrects)
) {keyed};

-- What supplies charged beside intervals, all so far.
CREATE TABLE power_bill (
  site {text} NOT NULL, what {text} NOT NULL, nano {int} NOT NULL, PRIMARY KEY (site, what)
) {keyed};

-- Records that the ledger could not apply. Always empty; books shows them otherwise, and nothing is dropped.
CREATE TABLE anomaly (
  seq {serial}, writer {text} NOT NULL, epoch {int} NOT NULL, reason {text} NOT NULL, record {bytes} NOT NULL
) {strict};
