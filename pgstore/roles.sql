-- Three roles: one migrates and owns all, one runs the bots, one looks. Run the first part once as an administrator, the second as the owner of the schema after each
-- migration: NewWithConfig as pgstore_migrate migrates, and the others open with SkipMigrations.

CREATE ROLE pgstore_migrate LOGIN;
CREATE ROLE pgstore_run LOGIN;
CREATE ROLE pgstore_read LOGIN;
CREATE SCHEMA whatsmeow AUTHORIZATION pgstore_migrate;
GRANT USAGE ON SCHEMA whatsmeow TO pgstore_run, pgstore_read;

-- After each migration.

-- Who runs reads all, writes the keys and who has them, and adds to the audit trail by triggers and functions alone.
GRANT SELECT ON ALL TABLES IN SCHEMA whatsmeow TO pgstore_run;
GRANT INSERT, UPDATE, DELETE ON whatsmeow.instances, whatsmeow.auth_keys, whatsmeow.set_aside, whatsmeow.lid_map, whatsmeow.processes, whatsmeow.settings,
    whatsmeow.data_keys TO pgstore_run;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA whatsmeow TO pgstore_run;
REVOKE EXECUTE ON FUNCTION whatsmeow.audit_flush, whatsmeow.audit_note FROM PUBLIC;
GRANT EXECUTE ON FUNCTION whatsmeow.audit_flush, whatsmeow.audit_note TO pgstore_run;

-- To let who runs erase an instance with its trail (Container.Erase), grant EXECUTE ON FUNCTION whatsmeow.audit_erase. Else the owner of the schema erases.

-- Who looks sees who has what, sizes, counters and the trail, and no key, not even a wrapped one.
GRANT SELECT ON whatsmeow.schema_info, whatsmeow.instances, whatsmeow.processes, whatsmeow.owners, whatsmeow.process_load, whatsmeow.instance_sizes,
    whatsmeow.session_counters, whatsmeow.sender_key_counters, whatsmeow.encryption,
    whatsmeow.audit, whatsmeow.audit_keys, whatsmeow.audit_heads, whatsmeow.audit_anchors TO pgstore_read;
