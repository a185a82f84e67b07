-- Whoever could use the schema may go on.
INSERT INTO {schema}.schema_info SELECT 8, max(usable_from) FROM {schema}.schema_info;

-- How many instances a process takes at the most ([Config].MaxInstances), so that the others know what is left to them. 0 is no limit.
ALTER TABLE {schema}.processes ADD COLUMN max_instances bigint NOT NULL DEFAULT 0;
