-- The whole schema, for psql: `psql -f schema/pgtasks.sql` installs what `pgtasks migrate` installs.
\set ON_ERROR_STOP on
begin;
\ir migrations/0001_create_tables.sql
insert into pgtasks.migrations (version, name, min_code_version) values (1, 'create_tables', 1);
\ir migrations/0002_create_functions.sql
insert into pgtasks.migrations (version, name, min_code_version) values (2, 'create_functions', 1);
\ir migrations/0003_extend_claims.sql
insert into pgtasks.migrations (version, name, min_code_version) values (3, 'extend_claims', 1);
\ir migrations/0004_separate_roles.sql
insert into pgtasks.migrations (version, name, min_code_version) values (4, 'separate_roles', 1);
\ir migrations/0005_tell_priorities.sql
insert into pgtasks.migrations (version, name, min_code_version) values (5, 'tell_priorities', 1);
\ir migrations/0006_extend_bundles.sql
insert into pgtasks.migrations (version, name, min_code_version) values (6, 'extend_bundles', 1);
\ir migrations/0007_add_progress.sql
insert into pgtasks.migrations (version, name, min_code_version) values (7, 'add_progress', 1);
\ir migrations/0008_add_unique_keys.sql
insert into pgtasks.migrations (version, name, min_code_version) values (8, 'add_unique_keys', 1);
\ir migrations/0009_add_queues.sql
insert into pgtasks.migrations (version, name, min_code_version) values (9, 'add_queues', 1);
\ir migrations/0010_add_limits.sql
insert into pgtasks.migrations (version, name, min_code_version) values (10, 'add_limits', 1);
\ir migrations/0011_gate_claims.sql
insert into pgtasks.migrations (version, name, min_code_version) values (11, 'gate_claims', 1);
\ir migrations/0012_add_schedules.sql
insert into pgtasks.migrations (version, name, min_code_version) values (12, 'add_schedules', 1);
\ir migrations/0013_narrow_finishes.sql
insert into pgtasks.migrations (version, name, min_code_version) values (13, 'narrow_finishes', 1);
commit;
