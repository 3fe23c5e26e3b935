"""What a person looks at: tables, pictures, pages. Views only read."""
